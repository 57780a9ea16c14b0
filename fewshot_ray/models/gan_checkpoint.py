"""Reads GANs from checkpoints of training scripts, of the layouts that are known by their tensors' names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.models import stylegan2
from fewshot_ray.models.misplaced import WEIGHTS
from fewshot_ray.models.weights import read_state_dicts
from fewshot_ray.storage import is_remote

FILTERS = (".kernel",)
"""Suffixes of constants in the common layout's state dicts, which are computed here."""
NOISES = "noises."
PARTS = ("g_ema", "d")
READ = "a StyleGAN2's checkpoint of the common PyTorch re-implementation (g_ema and d), or an exported GAN's folder, would be right"


class Layout(NamedTuple):
    """A code base, by the names of its generators' tensors."""

    description: str
    markers: tuple[str, ...]
    """Tensors that every generator of this layout has, and no other layout's."""
    remedy: str = f"this layout isn't read: {READ}"


COMMON = Layout("a StyleGAN2's checkpoint of the common PyTorch re-implementation", ("input.input", "conv1.conv.weight", "style.1.weight"))
LAYOUTS = (
    COMMON,
    Layout(
        "a StyleGAN's checkpoint with the names of NVIDIA's code",
        ("mapping.fc0.weight",),
        "a StyleGAN2's weights in the common PyTorch re-implementation's layout (by its convert_weight.py, with --disc) would be right",
    ),
    Layout("a FastGAN's checkpoint by its authors' code", ("init.init.0.weight_orig",)),
)


def is_checkpoint(place: str) -> bool:
    """Whether a place is a file of weights, not a pipeline's folder: by its ending or, for a local place, by what it is."""
    if place.lower().endswith(WEIGHTS):
        return True
    return not is_remote(place) and os.path.isfile(os.path.expanduser(place.removeprefix("file://")))


def networks_of(place: str) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of a checkpoint's `g_ema` and `d`; the architecture's settings are read from the shapes.

    Checkpoints from before the re-implementation kept its noise images (its own FFHQ model at 256x256 is one) get images drawn with
    a fixed seed. Raises UserError.
    """
    states = _state_dicts(place)
    layout = _layout(states)
    if layout is None:
        found = f"its tensors begin with {_first_names(states)}" if states else "it has no state dict"
        raise UserError(f"source.gan: {place} is a checkpoint of a layout that isn't known ({found}); {READ}")
    if layout is not COMMON:
        raise UserError(f"source.gan: {place} is {layout.description}; {layout.remedy}")
    missing = [name for name in PARTS if name not in states]
    if missing:
        found = f"it has {', '.join(sorted(name for name in states if name))[:200]}" if "" not in states else "it is one network's alone"
        raise UserError(f"source.gan: {place} is {COMMON.description} without {missing[0]} ({found}); one with g_ema and d would be right")
    generator, discriminator = ({n: t for n, t in states[name].items() if not n.endswith(FILTERS)} for name in PARTS)
    try:
        networks = _like(generator, discriminator)
    except (KeyError, ValueError, IndexError) as error:
        raise _damaged(place, "g_ema", f"{error.args[0]} doesn't fit") from error
    generator |= _drawn_noises(networks[0], generator)
    for name, network, state in zip(PARTS, networks, (generator, discriminator), strict=True):
        if (misfit := _misfit(network.state_dict(), state)) is not None:
            raise _damaged(place, name, misfit)
        network.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return networks


def _state_dicts(place: str) -> dict[str, dict[str, Tensor]]:
    """The state dicts without the prefix that DataParallel adds to names."""
    try:
        return {
            part: {name.removeprefix("module."): tensor for name, tensor in state.items()}
            for part, state in read_state_dicts(place).items()
        }
    except UserError as error:
        if place.lower().endswith(".pkl") and "not a checkpoint" in str(error):
            raise UserError(
                f"source.gan: {place} is a pickle of whole networks, as NVIDIA's code saves them; reading it would run code; {READ}"
            ) from error
        raise


def _layout(states: Mapping[str, Mapping[str, Tensor]]) -> Layout | None:
    """The first layout whose markers one of the state dicts has."""
    return next((layout for layout in LAYOUTS if any(state.keys() >= set(layout.markers) for state in states.values())), None)


def _first_names(states: Mapping[str, Mapping[str, Tensor]]) -> str:
    return ", ".join(f"{part}/{next(iter(state))}" if part else next(iter(state)) for part, state in sorted(states.items()))[:200]


def _damaged(place: str, part: str, misfit: str) -> UserError:
    return UserError(
        f"source.gan: {place} is no whole StyleGAN2 of the common PyTorch re-implementation: in {part}, {misfit}; "
        "a checkpoint as its training saves it, or an exported GAN's folder, would be right"
    )


def _drawn_noises(generator: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Noise images, drawn with a fixed seed, for a state dict without any; empty for one that has some."""
    noises = {name: buffer for name, buffer in generator.named_buffers() if name.startswith(NOISES)}
    if any(name in state for name in noises):
        return {}
    random = torch.Generator().manual_seed(0)
    return {name: torch.randn(buffer.shape, generator=random) for name, buffer in noises.items()}


def _misfit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str | None:
    """The first difference between a state dict and a network's own, in words; None where they agree."""
    for name in sorted(own.keys() - state.keys()):
        return f"{name} is missing"
    for name in sorted(state.keys() - own.keys()):
        return f"{name} belongs to none of its layers"
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            return f"{name} is {_size(state[name])} where {_size(tensor)} would fit its other layers"
        if not state[name].is_floating_point():
            return f"{name} holds no floating-point numbers ({str(state[name].dtype).removeprefix('torch.')})"
    return None


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _like(generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    """New networks with the architecture of the state dicts. Raises KeyError, ValueError or IndexError where it isn't known."""
    levels = sum(name.startswith("to_rgbs.") and name.endswith(".conv.weight") for name in generator)
    widths = {4: generator["input.input"].shape[1]}
    widths |= {8 << level: generator[f"convs.{2 * level + 1}.conv.weight"].shape[1] for level in range(levels)}
    resolution = 4 << levels
    if levels == 0 or widths[4] != max(widths.values()):
        raise ValueError("to_rgbs")
    base = max(width * size for size, width in widths.items() if size == resolution or width < widths[4])
    shared = {
        "resolution": resolution,
        "channels": generator["to_rgb1.bias"].shape[1],
        "channel_base": base,
        "channel_max": widths[4],
    }
    mapping = sum(name.startswith("style.") and name.endswith(".weight") for name in generator)
    made = stylegan2.StyleGan2Generator(**shared, latent_dim=generator["style.1.weight"].shape[0], mapping_layers=mapping)
    return made, stylegan2.StyleGan2Discriminator(**shared)
