"""Makes a model's exports work in diffusers' own pipelines, or refuses models that those can't sample."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, ModelMixin

from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.configuration import MISFIT, first_line
from fewshot_ray.models.pipeline import drawn_by_ddpm, export_scheduler


def write_out(network: ModelMixin) -> None:
    """Give a network's configuration the values that pipelines read from it, where it says the same in another way.

    `LDMPipeline` takes `sample_size` for one side, also where it is a pair of equal ones; `DiTPipeline` divides `out_channels`, which
    may be null for as many as `in_channels`.
    """
    size, settings = network.config.sample_size, {}
    if isinstance(size, (list, tuple)) and len(size) == 2 and size[0] == size[1]:
        settings["sample_size"] = size[0]
    if network.config.out_channels is None:
        settings["out_channels"] = network.config.in_channels
    network.register_to_config(**settings)


def check_drawable(backbone: Backbone, place: str) -> None:
    """Raise UserError where the pipeline that an export is can't draw: it is said before training."""
    if backbone.autoencoder is not None:
        name = "DiTPipeline" if isinstance(backbone.network, DiTTransformer2DModel) else "LDMPipeline"
        _, height, width = backbone.shape
        if height != width:
            raise UserError(
                f"source.model: {place} has latents of {height}x{width}, and {name}, as which it would be exported, draws squares alone; "
                "a model of square images would be right"
            )
        model = backbone.autoencoder.model
        foldable = isinstance(model, AutoencoderKL) and model.quant_conv is not None and model.post_quant_conv is not None
        if backbone.autoencoder.shift != 0 and not foldable:
            raise UserError(
                f"source.model: {place}'s autoencoder has shift_factor {backbone.autoencoder.shift:g}, which {name}, as which it would be "
                "exported, ignores; an autoencoder without, or one with quant_conv and post_quant_conv to put it into, would be right"
            )
    _try_scheduler(backbone, place)


def _try_scheduler(backbone: Backbone, place: str) -> None:
    channels, by_ddpm = backbone.shape[0], drawn_by_ddpm(backbone)
    x_t, generator = torch.zeros(1, channels, 2, 2), torch.Generator().manual_seed(0)
    output = torch.zeros(1, 2 * channels if backbone.learned_variance and by_ddpm else channels, 2, 2)
    try:
        scheduler = export_scheduler(backbone)
        scheduler.set_timesteps(min(2, backbone.schedule.timesteps))
        for t in scheduler.timesteps:
            x_t = scheduler.step(output, t, x_t, generator=generator).prev_sample
    except MISFIT as error:
        raise UserError(
            f"source.model: diffusers' {'DDPM' if by_ddpm else 'DDIM'}Scheduler can't draw with {place}'s schedule ({first_line(error)}); "
            "DDPMScheduler's would be right"
        ) from error
