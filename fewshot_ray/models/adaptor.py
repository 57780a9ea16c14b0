"""A `UNet2DModel` with ANT's adaptors: this file alone (torch and diffusers only) loads an exported model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

# `ModelMixin` is looked up in this module by `DiffusionPipeline.from_pretrained`, which else finds no way to load the network.
__all__ = ["Adaptor", "AdaptorUNet2DModel", "ModelMixin"]


class Adaptor(nn.Module):
    """`psi`: average pooling by c, a convolution to d channels, upsampling; its output is 0 at first (Wang et al. 2024, adaptor).

    Only the last layer starts at zero: with an earlier one at zero as well, neither would receive a gradient.
    """

    def __init__(self, channels_in: int, channels_out: int, pool: int, width: int) -> None:
        super().__init__()
        self.pool = pool
        self.down = nn.Conv2d(channels_in, width, 3, padding=1)
        self.norm = nn.GroupNorm(1, width)
        self.up = nn.Conv2d(width, channels_out, 1)
        for parameter in self.up.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C_in, H, W]` to `[B, C_out, H, W]`."""
        height, width = x.shape[-2:]
        pooled = F.adaptive_avg_pool2d(x, (max(1, height // self.pool), max(1, width // self.pool)))
        hidden = F.silu(self.norm(self.down(pooled)))
        result: Tensor = F.interpolate(self.up(hidden), size=(height, width), mode="nearest")
        return result


def _add_adaptor(block: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    result: Tensor = output + block.adaptor(args[0])  # type: ignore[operator]
    return result


def _with_unet_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Show `UNet2DModel`'s arguments in place of `**unet_config`: diffusers reads the signature to save and load a configuration."""
    own = [parameter for parameter in inspect.signature(init).parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    inherited = list(inspect.signature(UNet2DModel.__init__).parameters.values())[1:]
    init.__signature__ = inspect.Signature([*own, *inherited])  # type: ignore[attr-defined]
    return init


class AdaptorUNet2DModel(UNet2DModel):
    """`x^l = theta^l(x^{l-1}) + psi^l(x^{l-1})` around every residual block that keeps its resolution.

    Takes `UNet2DModel`'s arguments and `adaptor_pool` (c >= 1) and `adaptor_width` (d >= 1).
    """

    @register_to_config
    @_with_unet_arguments
    def __init__(self, adaptor_pool: int = 4, adaptor_width: int = 8, **unet_config: Any) -> None:
        super().__init__(**unet_config)
        for block in [module for module in self.modules() if isinstance(module, ResnetBlock2D)]:
            if block.upsample is None and block.downsample is None:
                block.adaptor = Adaptor(block.in_channels, block.out_channels, adaptor_pool, adaptor_width)
                block.register_forward_hook(_add_adaptor)
