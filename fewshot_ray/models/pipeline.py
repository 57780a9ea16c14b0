"""Saves a backbone with a trained network as the diffusers pipeline of its kind."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    ModelMixin,
    SchedulerMixin,
)
from torch import nn

from fewshot_ray.models import adaptor, adm_unet
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import for_pipeline
from fewshot_ray.models.sampling import Sampler

OWN_NETWORKS: dict[type[nn.Module], ModuleType] = {adaptor.AdaptorUNet2DModel: adaptor, adm_unet.AdmUNet2DModel: adm_unet}
"""Networks that diffusers doesn't have: the file of each is saved with it."""
LEARNED = ("learned", "learned_range")
"""`DDPMScheduler`'s values of `variance_type` for a learned variance."""


def save_pipeline(backbone: Backbone, network: ModelMixin, folder: Path) -> None:
    """Write what `DiffusionPipeline.from_pretrained` loads (with `trust_remote_code=True` for a network of our own)."""
    scheduler = export_scheduler(backbone)
    if isinstance(network, DiTTransformer2DModel):
        assert backbone.autoencoder is not None
        DiTPipeline(for_pipeline(network), export_autoencoder(backbone.autoencoder), scheduler).save_pretrained(str(folder))
        _edit_index(folder, id2label={str(number): name for number, name in enumerate(backbone.class_names)})
    elif backbone.autoencoder is not None:
        LDMPipeline(vqvae=export_autoencoder(backbone.autoencoder), unet=network, scheduler=scheduler).save_pretrained(str(folder))
    else:
        DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(str(folder))
    module = OWN_NETWORKS.get(type(network))
    if module is not None:
        _ship(module, type(network).__name__, folder)


def drawn_by_ddpm(backbone: Backbone) -> bool:
    """Whether diffusers draws with the export by DDPM; else by DDIM.

    By DDPM pixels, and latents of a U-Net with a learned variance: `LDMPipeline` hands both to its scheduler, and DDIM takes no variance.
    """
    if backbone.autoencoder is None:
        return True
    return backbone.learned_variance and not isinstance(backbone.network, DiTTransformer2DModel)


def export_scheduler(backbone: Backbone) -> SchedulerMixin:
    """The scheduler diffusers samples with, from T - 1 on as in `sampling`; latents have no bounds."""
    config: dict[str, Any] = {key: value for key, value in backbone.scheduler.config.items() if not key.startswith("_")}
    config |= {"timestep_spacing": "trailing"}
    if backbone.autoencoder is not None:
        config |= {"clip_sample": False, "thresholding": False}
    if not drawn_by_ddpm(backbone):
        return DDIMScheduler.from_config({**config, "set_alpha_to_one": True})
    if not backbone.learned_variance and config["variance_type"] in LEARNED:
        config["variance_type"] = "fixed_small"  # else diffusers looks for channels that there aren't
    elif backbone.learned_variance and config["variance_type"] not in LEARNED:
        config["variance_type"] = "learned_range"  # else it takes all channels for the mean
    elif config["variance_type"] == "fixed_large_log":
        config["variance_type"] = "fixed_large"  # the same variance, of whose log diffusers takes the root: NaN
    return DDPMScheduler.from_config(config)


def export_autoencoder(autoencoder: Autoencoder) -> ModelMixin:
    """The autoencoder's network without a shift of its latents, which `LDMPipeline` and `DiTPipeline` ignore.

    A shift is put into the biases of two 1x1 convolutions of a copy, the last before the latents and the first after them: the
    latents and images are the same.
    """
    model, shift = autoencoder.model, autoencoder.shift
    if shift == 0:
        return model
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.quant_conv.bias[: model.config.latent_channels] -= shift  # of the mean; the rest is the log-variance
        model.post_quant_conv.bias += shift * model.post_quant_conv.weight.sum(dim=(1, 2, 3))
    model.register_to_config(shift_factor=None)
    return model


class PipelineCall(NamedTuple):
    """How an exported pipeline is called."""

    arguments: str
    """Arguments of the call, e.g. `batch_size=16, num_inference_steps=1000`."""
    remark: str
    """One or two sentences: which sampler this call uses, and which one the metrics were measured with."""


def pipeline_call(backbone: Backbone, *, sampler: Sampler, steps: int, guidance_scale: float) -> PipelineCall:
    """The call whose images come nearest to those measured, which `sampler` drew in `steps` steps."""
    timesteps, by = backbone.schedule.timesteps, "DDIM" if sampler == "ddim" else "DPM-Solver++"
    guidance = f" --guidance-scale {guidance_scale:g}" if backbone.class_names else ""
    measured = (
        f"The metrics below are of images drawn by {by} in {steps} steps, "
        f"as `fewshot-ray sample path/to/this/folder OUT --sampler {sampler} --steps {steps}{guidance}` draws."
    )
    if drawn_by_ddpm(backbone):
        return PipelineCall(f"batch_size=16, num_inference_steps={timesteps}", f"These are DDPM's {timesteps} random steps. {measured}")
    own = max(divisor for divisor in range(1, steps + 1) if timesteps % divisor == 0)  # diffusers steps by the whole part of T / steps
    arguments = "batch_size=16"
    if backbone.class_names:
        arguments = f"class_labels={list(range(len(backbone.class_names)))}, guidance_scale={guidance_scale:g}"
    same = sampler == "ddim" and own == steps
    remark = f"The metrics below are of images drawn so: by DDIM in {steps} steps." if same else f"This is DDIM in {own} steps. {measured}"
    return PipelineCall(f"{arguments}, num_inference_steps={own}", remark)


def _ship(module: ModuleType, network: str, folder: Path) -> None:
    """Copy the file of the network's class into its component's folder, where diffusers looks for it."""
    name = module.__name__.rsplit(".", 1)[1]
    source = files("fewshot_ray.models") / f"{name}.py"
    (folder / "unet" / f"{name}.py").write_text(source.read_text())
    _edit_index(folder, unet=[name, network])


def _edit_index(folder: Path, **entries: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries, indent=2) + "\n")


def shipped_code(network: ModelMixin) -> str | None:
    """The file, within the pipeline, that a network of our own needs; None for diffusers' networks."""
    module = OWN_NETWORKS.get(type(network))
    return None if module is None else f"unet/{module.__name__.rsplit('.', 1)[1]}.py"
