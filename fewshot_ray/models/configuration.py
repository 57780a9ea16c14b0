"""Whether a network can be built from a configuration: tried on PyTorch's meta device, where nothing is allocated or computed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiTTransformer2DModel, ModelMixin, VQModel

from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.sampling import Sampler, denoise
from fewshot_ray.spec.wording import show

MISFIT = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    NameError,
    LookupError,
    AssertionError,
    ArithmeticError,
    ImportError,
    MemoryError,
)
"""What diffusers raises on settings of another type, out of range, or that don't fit each other (found by trying thousands of them)."""

MOST = {"layers_per_block": 64, "num_layers": 512, "num_train_timesteps": 100_000, "sample_size": 16_384}
MOST_OTHERS = 2**20
MOST_ENTRIES = 100_000
"""Longest list: a schedule may give one beta per timestep."""
MOST_PARAMETERS = 10**11
WORTH_A_LOOK = 10**8
"""Parameters up to which a network is built without this check: building it is quick, and its errors name the weights."""


def check_sizes(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a number or list far beyond any network's: building one would take all memory, or days."""
    for key, value in config.items():
        most = MOST.get(key, MOST_OTHERS)
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            raise ValueError(f"{key} has {len(value)} entries")
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise ValueError(f"{key} is {show(number)}, more than {most}")


def on_meta(kind: type[ModelMixin], config: Mapping[str, Any]) -> ModelMixin:
    """The network on the meta device, without memory. Raises one of MISFIT."""
    check_sizes(config)
    with torch.device("meta"):
        network = kind.from_config(dict(config))
    if (parameters := parameter_count(network)) > MOST_PARAMETERS:
        raise ValueError(f"it describes a network of {parameters / 1e9:.0f} billion parameters")
    return network.eval()


def parameter_count(network: ModelMixin) -> int:
    """The number of all parameters of the network."""
    return sum(parameter.numel() for parameter in network.parameters())


def not_finite(network: ModelMixin) -> str | None:
    """The name of the first weight with a NaN or infinity; None where there is none."""
    return next((name for name, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence diffusers' log and torch's warnings within the block: what is wrong is reported here in one line."""
    before = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity(diffusers.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        diffusers.logging.set_verbosity(before)


@torch.no_grad()
def forward_shape(network: ModelMixin, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the network's output for one x_t `[C, H, W]`. Raises one of MISFIT."""
    empty = on_meta(type(network), network.config)
    number = torch.zeros(1, dtype=torch.long, device="meta")
    labels = number if isinstance(network, DiTTransformer2DModel) else None
    output = empty(torch.empty((1, *shape), device="meta"), number, class_labels=labels).sample
    return tuple(output.shape[1:])


@torch.no_grad()
def coded_shapes(autoencoder: ModelMixin, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of the latents of one image `[C, H, W]` and of the decoded image. Raises one of MISFIT."""
    empty = on_meta(type(autoencoder), autoencoder.config)
    encoded = empty.encode(torch.empty((1, *shape), device="meta"))
    latents = encoded.latents if isinstance(empty, VQModel) else encoded.latent_dist.mean
    return tuple(latents.shape[1:]), tuple(empty.decode(latents).sample.shape[1:])


def try_samplers(backbone: Backbone, place: str) -> None:
    """Raise UserError where one of our samplers can't step along the schedule."""
    noise = torch.zeros(1, backbone.shape[0], 2, 2)
    samplers: tuple[Sampler, ...] = ("ddim", "dpm++")
    config = backbone.scheduler.config
    try:
        if config.num_train_timesteps != backbone.schedule.timesteps:
            raise ValueError(f"it has {backbone.schedule.timesteps} betas and num_train_timesteps {config.num_train_timesteps}")
        for sampler in samplers:
            denoise(backbone, lambda x_t, t: x_t, noise, sampler=sampler, steps=min(2, backbone.schedule.timesteps))
    except MISFIT as error:
        raise UserError(
            f"source.model: {place}'s schedule can't be sampled from ({first_line(error)}); DDPMScheduler's would be right"
        ) from error


def is_size(size: Any) -> bool:
    """Whether it is a valid `sample_size`: one side, or height and width."""
    sides = size if isinstance(size, (list, tuple)) and len(size) == 2 else [size]
    return all(type(side) is int and side >= 1 for side in sides)


def check_config(kind: type[ModelMixin], config: dict[str, Any], folder: Path) -> None:
    """Raise UserError for a configuration that no network can be built from, or one far larger than the weights beside it."""
    try:
        parameters = parameter_count(on_meta(kind, config))
    except MISFIT as error:
        raise UserError(
            f"source.model: {folder}/config.json describes no {kind.__name__} ({first_line(error)}); "
            "the one its weights were saved with would be right"
        ) from error
    saved_bytes = sum(path.stat().st_size for path in folder.glob("diffusion_pytorch_model*") if path.is_file())
    if parameters > max(saved_bytes, WORTH_A_LOOK):  # every format has at least a byte per parameter
        raise UserError(
            f"source.model: {folder}/config.json describes {parameters} parameters, more than its weights' {saved_bytes} bytes can hold; "
            "the one its weights were saved with would be right"
        )


def unsaid(kind: type[ModelMixin], config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a `config.json` that it doesn't have, where diffusers would fill in those of another model. Raises UserError.

    Published VQ autoencoders (CompVis/ldm-*) have no scaling_factor, and latents that were trained on as they are; diffusers fills in
    .18215, which is right for Stable Diffusion's KL autoencoder alone. A DiT's size can't be seen in its weights.
    """
    if kind is VQModel and "scaling_factor" not in config:
        return {"scaling_factor": 1.0}
    if kind is DiTTransformer2DModel and "sample_size" not in config:
        raise UserError(f"source.model: {folder}/config.json has no sample_size; the one its weights were trained with would be right")
    return {}


def check_scale(config: Any, folder: Path) -> None:
    """Raise UserError where an autoencoder's latents can't be scaled as its configuration says."""
    shift = getattr(config, "shift_factor", None)
    values = {"scaling_factor": getattr(config, "scaling_factor", None), "shift_factor": 0.0 if shift is None else shift}
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        if not is_number or (name == "scaling_factor" and value == 0):
            raise UserError(f"source.model: {folder}/config.json has {show(value)} as {name}; a finite number, not 0, would be right")


def check_shapes(backbone: Backbone, place: str) -> None:
    """Raise UserError where the input or output shapes of network and autoencoder don't agree with the configurations."""
    channels, height, width = backbone.shape
    out_channels = 2 * channels if backbone.learned_variance else channels
    try:
        made = forward_shape(backbone.network, backbone.shape)
    except MISFIT as error:
        raise UserError(
            f"source.model: the network at {place} can't take the {channels}x{height}x{width} images of its configuration "
            f"({first_line(error)[:200]}); a sample_size that can be halved at every level would be right"
        ) from error
    if made != (out_channels, height, width):
        raise UserError(
            f"source.model: of {height}x{width} images the network at {place} makes {'x'.join(map(str, made[1:]))}; the same would be right"
        )
    if backbone.autoencoder is None:
        return
    image = (backbone.channels, *backbone.size)
    try:
        latents, decoded = coded_shapes(backbone.autoencoder.model, image)
    except MISFIT as error:
        raise UserError(
            f"source.model: the autoencoder at {place} can't take {'x'.join(map(str, image))} images ({first_line(error)[:200]}); "
            "the configuration its weights were saved with would be right"
        ) from error
    if latents != backbone.shape or decoded != image:
        shown = ["x".join(map(str, shape)) for shape in (image, latents, decoded, backbone.shape)]
        raise UserError(
            f"source.model: the autoencoder at {place} makes {shown[1]} latents of {shown[0]} images, and {shown[2]} images of those; "
            f"the network's {shown[3]}, and images as they were, would be right"
        )


@torch.no_grad()
def check_range(backbone: Backbone, place: str) -> None:
    """Raise UserError where the network can't be evaluated, or isn't finite, at t = 0, 1, T / 2 or T - 1.

    On noise of the smallest size the network takes: two pixels at its coarsest level, or one patch.
    """
    network, timesteps = backbone.network, backbone.schedule.timesteps
    channels, height, width = backbone.shape
    config = network.config
    least = config.patch_size if isinstance(network, DiTTransformer2DModel) else 2 ** len(config.block_out_channels)
    size = (1, channels, min(height, least), min(width, least))
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(1, dtype=torch.long) if isinstance(network, DiTTransformer2DModel) else None
    right = f"one that was trained at every t from 0 to {timesteps - 1} would be right"
    for t in sorted({0, 1, timesteps // 2, timesteps - 1} & set(range(timesteps))):
        try:
            output = network(noise, torch.tensor([t]), class_labels=labels).sample
        except MISFIT as error:
            raise UserError(
                f"source.model: the network at {place} can't be evaluated at t = {t} ({first_line(error)[:200]}); {right}"
            ) from error
        if not output.isfinite().all():
            raise UserError(f"source.model: the network's output at {place} isn't finite at t = {t}; {right}")


def first_line(error: BaseException) -> str:
    """The first line of an error's text after PyTorch's heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.endswith(":")), type(error).__name__)
