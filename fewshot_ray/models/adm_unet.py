"""A `UNet2DModel` with what ADM networks have and its configuration can't express: this file alone (torch and diffusers only) loads one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

# `ModelMixin` is looked up in this module by `DiffusionPipeline.from_pretrained`, which else finds no way to load the network.
__all__ = ["AdmUNet2DModel", "ModelMixin"]


def _with_unet_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Show `UNet2DModel`'s arguments in place of `**unet_config`: diffusers reads the signature to save and load a configuration."""
    own = [parameter for parameter in inspect.signature(init).parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    inherited = list(inspect.signature(UNet2DModel.__init__).parameters.values())[1:]
    init.__signature__ = inspect.Signature([*own, *inherited])  # type: ignore[attr-defined]
    return init


class AdmUNet2DModel(UNet2DModel):
    """Dhariwal & Nichol 2021 (ADM): as many heads at every width, and a time embedding as wide as the model, not as its first level.

    Takes `UNet2DModel`'s arguments and `attention_heads`, the heads of every attention (None: by `attention_head_dim`), and
    `time_channels`, the sinusoidal embedding's width (None: that of the first level). Raises ValueError where the heads don't divide
    a width.
    """

    @register_to_config
    @_with_unet_arguments
    def __init__(self, attention_heads: int | None = None, time_channels: int | None = None, **unet_config: Any) -> None:
        super().__init__(**unet_config)
        if attention_heads is not None:
            for attention in [module for module in self.modules() if isinstance(module, Attention)]:
                _set_heads(attention, attention_heads)
        if time_channels is not None:
            self.time_proj = Timesteps(time_channels, self.config.flip_sin_to_cos, self.config.freq_shift)
            hidden_channels = self.time_embedding.linear_1.out_features  # type: ignore[has-type]
            self.time_embedding = TimestepEmbedding(time_channels, hidden_channels)


def _set_heads(attention: Attention, heads: int) -> None:
    """The weights stay as they are: the number of heads only decides how the channels of queries, keys and values are grouped."""
    if attention.inner_dim % heads:
        raise ValueError(f"{heads} attention heads don't divide {attention.inner_dim} channels")
    attention.heads = attention.sliceable_head_dim = heads
    attention.scale = (attention.inner_dim // heads) ** -0.5
