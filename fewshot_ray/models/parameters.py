"""Which parameters of a network are trained: all, some, or new ones beside them (`train.params`).

peft is imported by what uses it, as it brings transformers along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from diffusers import ModelMixin, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from fewshot_ray.errors import UserError
from fewshot_ray.models.adaptor import AdaptorUNet2DModel
from fewshot_ray.models.class_table import new_tables
from fewshot_ray.models.difffit import add_gammas, difffit_names
from fewshot_ray.models.orthogonal import check_blocks, use_plain_block_diagonal
from fewshot_ray.spec.ranges import Choice, IntRange

if TYPE_CHECKING:
    from peft import PeftConfig


class ParamsConfig(BaseModel):
    """Settings of one way to choose the trained parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class FullConfig(ParamsConfig):
    """Every parameter is trained."""


class BitfitConfig(ParamsConfig):
    """Only the biases are trained (Ben Zaken et al. 2022)."""


class DifffitConfig(ParamsConfig):
    """Biases, the norms' scales and shifts, class embeddings and scale factors of branches are trained (DiffFit, Xie et al. 2023)."""

    scale_gammas: bool = True
    """Whether each attention, feed-forward and residual branch is scaled by trained factors, one per channel, 1 at first.
    The paper's learning rate is ten times that of full fine-tuning: 1e-3 against 1e-4."""


class AdaptorConfig(ParamsConfig):
    """Only bottleneck adaptors beside a UNet's residual blocks are trained (ANT)."""

    pool: int = Field(default=4, ge=1)
    """c, the pooling factor; in the paper 4 for pixel models, 2 for latent ones."""
    width: Annotated[int, Field(ge=1, le=4096), IntRange(4, 64)] = 8
    """d, the adaptor's channels."""


class LoraParamsConfig(ParamsConfig):
    """Low-rank updates of attention projections, convolutions and feed-forward layers (Hu et al. 2022, through peft)."""

    rank: Annotated[int, Field(ge=1, le=4096), IntRange(2, 32)] = 8
    """r."""
    alpha: float = Field(default=8.0, gt=0)
    """Updates are scaled by alpha / rank."""
    convolutions: bool = True
    """UNets: whether the residual blocks' convolutions are updated too, not only the attention."""
    feed_forward: bool = True
    """Transformers (DiT): whether the feed-forward layers are updated too, not only the attention."""


class OftParamsConfig(ParamsConfig):
    """Attention projections and feed-forward layers are rotated, block by block (OFT, Qiu et al. 2023, through peft).

    A UNet's convolutions aren't rotated: peft's OFT changes what a 3x3 convolution computes even before training.
    """

    block_size: Annotated[int, Field(ge=2, le=4096), Choice((4, 8, 16, 32))] = 8
    """b, the number of inputs that are rotated together; must divide the layers' widths."""
    feed_forward: bool = True
    """Transformers (DiT): whether the feed-forward layers are rotated too, not only the attention."""


class BoftParamsConfig(ParamsConfig):
    """Layers are rotated by a product of sparse rotations, and their outputs scaled (BOFT, Liu et al. 2024, through peft).

    Every pass multiplies square matrices as wide as each layer's input.
    """

    block_size: Annotated[int, Field(ge=2, le=4096), Choice((2, 4, 8))] = 4
    """b, the number of inputs that one factor rotates together; b 2^(m - 1) must divide the layers' widths."""
    butterfly_factors: Annotated[int, Field(ge=1, le=16), IntRange(1, 4)] = 2
    """m, the number of rotations that are multiplied; 1 is OFT with scaled outputs."""
    convolutions: bool = False
    """UNets: whether the residual blocks' convolutions are rotated too; the matrices are 9 times as wide as their channels."""
    feed_forward: bool = False
    """Transformers (DiT): whether the feed-forward layers are rotated too; the matrices are up to 4 times as wide as the network."""


@dataclass
class TunedNetwork:
    """A network, its trained parameters, and how to get a plain diffusers network from it.

    `trained` maps names (unique, stable across runs: checkpoints use them) to parameters; all others have requires_grad False.
    `merge` gives a plain diffusers network and may change `network`.
    """

    network: nn.Module
    trained: dict[str, nn.Parameter]
    merge: Callable[[], ModelMixin]

    @property
    def share(self) -> float:
        """Trained parameters over all parameters, in (0, 1]."""
        total = sum(parameter.numel() for parameter in self.network.parameters())
        return sum(parameter.numel() for parameter in self.trained.values()) / total


def _select(network: nn.Module, chosen: Callable[[str], bool], merge: Callable[[], ModelMixin]) -> TunedNetwork:
    """Train the parameters named in `chosen`, and class tables that are new, which only training can fit to the target's classes."""
    new = {id(parameter) for parameter in new_tables(network)}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(chosen(name) or id(parameter) in new)
    trained = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    return TunedNetwork(network, trained, merge)


def _full(network: ModelMixin, config: FullConfig) -> TunedNetwork:
    return _select(network, lambda name: True, lambda: network)


def _bitfit(network: ModelMixin, config: BitfitConfig) -> TunedNetwork:
    return _select(network, lambda name: name.endswith(".bias"), lambda: network)


def _difffit(network: ModelMixin, config: DifffitConfig) -> TunedNetwork:
    fold = add_gammas(network) if config.scale_gammas else None

    def merge() -> ModelMixin:
        if fold is not None:
            fold()
        return network

    return _select(network, difffit_names(network).__contains__, merge)


def _adaptor(network: ModelMixin, config: AdaptorConfig) -> TunedNetwork:
    if isinstance(network, AdaptorUNet2DModel):
        present = AdaptorConfig(pool=network.config.adaptor_pool, width=network.config.adaptor_width)
        if present != config:
            raise UserError(
                f"train.params.adaptor: {config} given, but the source model has adaptors already ({present}); "
                "the same, or full, bitfit or lora, would be right"
            )
        return _select(network, lambda name: ".adaptor." in name, lambda: network)
    _check_adaptable(network)
    # from_config, since it ignores settings of other versions of diffusers
    adapted = AdaptorUNet2DModel.from_config(dict(network.config), adaptor_pool=config.pool, adaptor_width=config.width)
    adapted.load_state_dict(network.state_dict(), strict=False)
    adapted.to(network.device)
    return _select(adapted, lambda name: ".adaptor." in name, lambda: adapted)


def _check_adaptable(network: ModelMixin) -> None:
    kind = type(network).__name__
    if not any(isinstance(module, ResnetBlock2D) for module in network.modules()):
        raise UserError(
            f"train.params.adaptor: {kind} has no residual convolution blocks to put adaptors beside; lora, difffit or full would be right"
        )
    if type(network) is not UNet2DModel:
        raise UserError(
            f"train.params.adaptor: {kind} is no plain UNet2DModel, so a model with adaptors would compute something else; "
            "lora, difffit or full would be right"
        )


def _lora(network: ModelMixin, config: LoraParamsConfig) -> TunedNetwork:
    from peft import LoraConfig

    targets = _targets(network, convolutions=config.convolutions, feed_forward=config.feed_forward)
    if not targets:
        raise UserError("train.params.lora: the model has no attention; convolutions: true would be right")
    return _wrap(network, LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets), "lora_")


def _oft(network: ModelMixin, config: OftParamsConfig) -> TunedNetwork:
    from peft import OFTConfig

    targets = _targets(network, convolutions=False, feed_forward=config.feed_forward)
    if not targets:
        raise UserError("train.params.oft: the model has no attention; lora, or boft with convolutions: true, would be right")
    check_blocks("oft", network, targets, config.block_size)
    # not Neumann's series for Cayley's inverse: its result isn't orthogonal
    return _wrap(network, OFTConfig(oft_block_size=config.block_size, use_cayley_neumann=False, target_modules=targets), "oft_")


def _boft(network: ModelMixin, config: BoftParamsConfig) -> TunedNetwork:
    from peft import BOFTConfig

    targets = _targets(network, convolutions=config.convolutions, feed_forward=config.feed_forward)
    if not targets:
        raise UserError("train.params.boft: the model has no attention; convolutions: true would be right")
    check_blocks("boft", network, targets, config.block_size, config.butterfly_factors)
    use_plain_block_diagonal()
    factors = config.butterfly_factors
    return _wrap(network, BOFTConfig(boft_block_size=config.block_size, boft_n_butterfly_factor=factors, target_modules=targets), "boft_")


def _targets(network: ModelMixin, *, convolutions: bool, feed_forward: bool) -> list[str]:
    """Full names of the attention projections and, where wanted, of residual blocks' convolutions and feed-forward layers."""
    ends = [".to_q", ".to_k", ".to_v", ".to_out.0"]
    ends += [".conv1", ".conv2"] if convolutions else []
    ends += [".ff.net.0.proj", ".ff.net.2"] if feed_forward else []
    return [name for name, _ in network.named_modules() if name.endswith(tuple(ends))]


def _wrap(network: ModelMixin, config: PeftConfig, prefix: str) -> TunedNetwork:
    from peft import get_peft_model

    wrapped = get_peft_model(network, config)
    return _select(wrapped, lambda name: prefix in name, wrapped.merge_and_unload)


PARAMS: dict[str, tuple[type[ParamsConfig], Callable[[ModelMixin, Any], TunedNetwork]]] = {
    "full": (FullConfig, _full),
    "bitfit": (BitfitConfig, _bitfit),
    "difffit": (DifffitConfig, _difffit),
    "adaptor": (AdaptorConfig, _adaptor),
    "lora": (LoraParamsConfig, _lora),
    "oft": (OftParamsConfig, _oft),
    "boft": (BoftParamsConfig, _boft),
}


def tune(network: ModelMixin, name: str, config: ParamsConfig, *, seed: int) -> TunedNetwork:
    """Choose the trained parameters of `network` (changed in place, or wrapped); new parameters are initialised from `seed`.

    Raises UserError where the setting doesn't fit the network.
    """
    devices = [network.device] if network.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return PARAMS[name][1](network, config)
