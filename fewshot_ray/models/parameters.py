"""What is trained of a network: all of it, its biases, adaptors beside it, or low-rank updates (`train.params`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from diffusers import UNet2DModel
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from fewshot_ray.errors import UserError
from fewshot_ray.models.adaptor import AdaptorUNet2DModel
from fewshot_ray.spec.ranges import IntRange


class ParamsConfig(BaseModel):
    """Settings of one way to choose the trained parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class FullConfig(ParamsConfig):
    """Every parameter is trained."""


class BitfitConfig(ParamsConfig):
    """Only the biases are trained (Ben Zaken et al. 2022)."""


class AdaptorConfig(ParamsConfig):
    """Only bottleneck adaptors beside the residual blocks are trained (ANT)."""

    pool: int = Field(default=4, ge=1)
    """c, the factor the feature maps are pooled by; 4 for pixel models, 2 for latent ones."""
    width: Annotated[int, Field(ge=1), IntRange(4, 64)] = 8
    """d, the adaptor's channels."""


class LoraParamsConfig(ParamsConfig):
    """Low-rank updates of attention projections and residual convolutions (Hu et al. 2022, through peft)."""

    rank: Annotated[int, Field(ge=1), IntRange(2, 32)] = 8
    """r."""
    alpha: float = Field(default=8.0, gt=0)
    """Updates are scaled by alpha / rank."""
    convolutions: bool = True
    """Whether the residual blocks' convolutions are updated too, not only the attention."""


@dataclass
class TunedNetwork:
    """A network, the parameters of it that are trained, and how to hand it back.

    `trained` maps names (unique, stable across runs: checkpoints use them) to parameters; all others have requires_grad False.
    """

    network: nn.Module
    trained: dict[str, nn.Parameter]
    merge: Callable[[], UNet2DModel]

    @property
    def share(self) -> float:
        """Trained parameters over all parameters, in (0, 1]."""
        total = sum(parameter.numel() for parameter in self.network.parameters())
        return sum(parameter.numel() for parameter in self.trained.values()) / total


def _select(network: nn.Module, chosen: Callable[[str], bool], merge: Callable[[], UNet2DModel]) -> TunedNetwork:
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(chosen(name))
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    return TunedNetwork(network, trained, merge)


def _full(unet: UNet2DModel, config: FullConfig) -> TunedNetwork:
    return _select(unet, lambda name: True, lambda: unet)


def _bitfit(unet: UNet2DModel, config: BitfitConfig) -> TunedNetwork:
    return _select(unet, lambda name: name.endswith(".bias"), lambda: unet)


def _adaptor(unet: UNet2DModel, config: AdaptorConfig) -> TunedNetwork:
    if isinstance(unet, AdaptorUNet2DModel):
        present = AdaptorConfig(pool=unet.config.adaptor_pool, width=unet.config.adaptor_width)
        if present != config:
            raise UserError(
                f"train.params.adaptor: {config} given, but the source model has adaptors already ({present}); "
                "the same, or full, bitfit or lora, would be right"
            )
        return _select(unet, lambda name: ".adaptor." in name, lambda: unet)
    # from_config, since a configuration may hold settings of another version, which are passed over
    adapted = AdaptorUNet2DModel.from_config(dict(unet.config), adaptor_pool=config.pool, adaptor_width=config.width)
    adapted.load_state_dict(unet.state_dict(), strict=False)
    adapted.to(unet.device)
    return _select(adapted, lambda name: ".adaptor." in name, lambda: adapted)


def _lora(unet: UNet2DModel, config: LoraParamsConfig) -> TunedNetwork:
    targets = ["to_q", "to_k", "to_v", "to_out.0"] + (["conv1", "conv2"] if config.convolutions else [])
    wanted = [name for name, _ in unet.named_modules() if any(name.endswith("." + target) for target in targets)]
    if not wanted:
        raise UserError("train.params.lora: the model has no attention; convolutions: true would be right")
    lora = get_peft_model(unet, LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=wanted))
    return _select(lora, lambda name: "lora_" in name, lora.merge_and_unload)


PARAMS: dict[str, tuple[type[ParamsConfig], Callable[[UNet2DModel, Any], TunedNetwork]]] = {
    "full": (FullConfig, _full),
    "bitfit": (BitfitConfig, _bitfit),
    "adaptor": (AdaptorConfig, _adaptor),
    "lora": (LoraParamsConfig, _lora),
}


def tune(unet: UNet2DModel, name: str, config: ParamsConfig, *, seed: int) -> TunedNetwork:
    """Choose what is trained of `unet` (changed in place, or wrapped); new parameters are drawn from `seed`."""
    devices = [unet.device] if unet.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return PARAMS[name][1](unet, config)
