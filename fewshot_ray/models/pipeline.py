"""A backbone with a trained network as the diffusers pipeline of its kind."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from types import ModuleType

from diffusers import DDIMScheduler, DDPMPipeline, DiTPipeline, DiTTransformer2DModel, LDMPipeline, ModelMixin
from torch import nn

from fewshot_ray.models import adaptor, adm_unet
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import for_pipeline

OWN_NETWORKS: dict[type[nn.Module], ModuleType] = {adaptor.AdaptorUNet2DModel: adaptor, adm_unet.AdmUNet2DModel: adm_unet}
"""Networks that diffusers doesn't have: the file of each travels with it."""


def save_pipeline(backbone: Backbone, network: ModelMixin, folder: Path) -> None:
    """Write what `DiffusionPipeline.from_pretrained` loads (with `trust_remote_code=True` for a network of our own)."""
    if isinstance(network, DiTTransformer2DModel):
        assert backbone.autoencoder is not None
        scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
        DiTPipeline(for_pipeline(network), backbone.autoencoder.model, scheduler).save_pretrained(str(folder))
        _edit_index(folder, id2label={str(number): name for number, name in enumerate(backbone.class_names)})
    elif backbone.autoencoder is not None:
        scheduler = DDIMScheduler.from_config(backbone.scheduler.config)
        LDMPipeline(vqvae=backbone.autoencoder.model, unet=network, scheduler=scheduler).save_pretrained(str(folder))
    else:
        DDPMPipeline(unet=network, scheduler=backbone.scheduler).save_pretrained(str(folder))
    module = OWN_NETWORKS.get(type(network))
    if module is not None:
        _ship(module, type(network).__name__, folder)


def _ship(module: ModuleType, network: str, folder: Path) -> None:
    """The network's class travels in its component's folder, where diffusers looks for it."""
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
