"""Images from noise: DDIM or DPM-Solver++ over a backbone's own schedule."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.models.autoencoder import ENCODED_IMAGES
from fewshot_ray.models.backbone import Backbone

Sampler = Literal["ddim", "dpm++"]


def make_sampler(backbone: Backbone, sampler: Sampler) -> Any:
    """The diffusers scheduler for `sampler`, with the backbone's betas and prediction type.

    Its timesteps end at T - 1 ("trailing", Lin et al. 2024), where the noise the sampling starts from belongs.
    """
    config = {**backbone.scheduler.config, "timestep_spacing": "trailing"}
    if backbone.autoencoder:
        config["clip_sample"] = False  # latents have no bounds
    if sampler == "ddim":
        return DDIMScheduler.from_config(config)
    fixed = {"variance_type": None}  # a learned variance plays no part in either sampler
    return DPMSolverMultistepScheduler.from_config({**config, **fixed, "algorithm_type": "dpmsolver++"})


@torch.no_grad()
def sample(
    backbone: Backbone,
    network: nn.Module,
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    labels: Tensor | None = None,
    guidance_scale: float = 1.0,
    batch_images: int = 256,
) -> Tensor:
    """Images uint8 `[N, C, H, W]` from `noise` `[N, *backbone.shape]` (standard normal), deterministic given the noise.

    `labels` `[N]` are for a model with classes, and `guidance_scale` its classifier-free guidance (1: none).

    DDIM (Song et al. 2021, eta 0) recomputes eps from the clipped x_0: without that, a model whose x_0_hat leaves [-1, 1]
    at high noise gives muddy, dark images. Raises UserError for more steps than the model has timesteps.
    """
    if steps > backbone.schedule.timesteps:
        raise UserError(
            f"evaluate.sampler_steps: {steps} given, but the model has {backbone.schedule.timesteps} timesteps; no more would be right"
        )
    if len(noise) == 0:  # more workers than samples
        return torch.empty((0, backbone.channels, *backbone.size), dtype=torch.uint8, device=noise.device)
    scheduler = make_sampler(backbone, sampler)
    was_training = network.training
    network.eval()
    images = []
    for rows in torch.arange(len(noise), device=noise.device).split(batch_images):
        x_0 = _denoise(backbone, network, noise[rows], scheduler, steps, None if labels is None else labels[rows], guidance_scale)
        images += [
            from_model_range(backbone.decode(part)) for part in x_0.split(batch_images if backbone.autoencoder is None else ENCODED_IMAGES)
        ]
    network.train(was_training)
    return torch.cat(images)


def _denoise(
    backbone: Backbone, network: nn.Module, noise: Tensor, scheduler: Any, steps: int, labels: Tensor | None, guidance_scale: float
) -> Tensor:
    scheduler.set_timesteps(steps, device=noise.device)
    x_t = noise * scheduler.init_noise_sigma
    extra = {"use_clipped_model_output": True} if isinstance(scheduler, DDIMScheduler) else {}
    for t in scheduler.timesteps:
        prediction = backbone.predict_guided(network, x_t, t.expand(x_t.shape[0]), labels, guidance_scale)
        x_t = scheduler.step(prediction, t, x_t, **extra).prev_sample
    x_0: Tensor = x_t
    return x_0
