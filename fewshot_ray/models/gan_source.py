"""GANs from scratch, from an exported pipeline, or from a checkpoint of the common StyleGAN2 re-implementation; and back to a pipeline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import nn

from fewshot_ray.errors import UserError, said_of
from fewshot_ray.models import fastgan, stylegan2
from fewshot_ray.models.configuration import not_finite
from fewshot_ray.models.gan import FastGan, Gan, StyleGan2
from fewshot_ray.models.gan_checkpoint import is_checkpoint, networks_of
from fewshot_ray.models.gan_pipeline import GanPipeline
from fewshot_ray.models.source import GAN_PIPELINE, load_component, locate_pipeline, read_json
from fewshot_ray.spec.sections import Section

FITTING = {"stylegan2": "a StyleGAN2's export or checkpoint", "fastgan": "a FastGAN's export"}


def _power_of_two(resolution: int) -> int:
    if resolution & (resolution - 1):
        below = 1 << (resolution.bit_length() - 1)
        raise ValueError(f"{resolution} is no power of two; {below} or {2 * below} is right")
    return resolution


class GanConfig(Section):
    """An architecture's settings."""

    weights: str | None = Field(default=None, min_length=1)
    """An exported GAN's folder, hub id or URL; the architecture's settings are read from it. From scratch when not given."""


class StyleGan2Config(GanConfig):
    """StyleGAN2 (Karras et al. 2020); `weights` may also be a checkpoint file of the common PyTorch re-implementation (`g_ema`, `d`)."""

    resolution: Annotated[int, Field(ge=8, le=1024), AfterValidator(_power_of_two)] = 256
    """Pixels along a side, a power of two."""
    channels: Literal[1, 3] = 3
    """Of the images."""
    latent_dim: int = Field(default=512, ge=1, le=4096)
    """Length of a latent and of a style."""
    mapping_layers: int = Field(default=8, ge=1, le=64)
    """Layers of the mapping network."""
    channel_base: int = Field(default=32768, ge=1, le=2**20)
    """Channels at each resolution, times the resolution."""
    channel_max: int = Field(default=512, ge=1, le=4096)
    """Upper bound on the channels of a map."""
    stddev_group: int = Field(default=4, ge=1)
    """Images per group of the discriminator's minibatch standard deviation."""


class FastGanConfig(GanConfig):
    """FastGAN (Liu et al. 2021)."""

    resolution: Annotated[int, Field(ge=64, le=1024), AfterValidator(_power_of_two)] = 256
    """Pixels along a side, a power of two; the published networks begin at 256."""
    channels: Literal[1, 3] = 3
    """Of the images."""
    latent_dim: int = Field(default=256, ge=1, le=4096)
    """Length of a latent."""
    width: int = Field(default=64, ge=8, le=1024)
    """Channels of the maps at 128x128; those of other resolutions are multiples of it."""


GANS: Mapping[str, type[GanConfig]] = {"stylegan2": StyleGan2Config, "fastgan": FastGanConfig}


def build_gan(config: GanConfig, *, seed: int) -> Gan:
    """A GAN with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        settings = config.model_dump(exclude={"weights"})
        if isinstance(config, StyleGan2Config):
            group = settings.pop("stddev_group")
            shared = {name: settings[name] for name in ("resolution", "channels", "channel_base", "channel_max")}
            discriminator = stylegan2.StyleGan2Discriminator(**shared, stddev_group=group)
            return StyleGan2(stylegan2.StyleGan2Generator(**settings).eval(), discriminator.eval())
        shared = {name: settings[name] for name in ("resolution", "channels", "width")}
        return FastGan(fastgan.FastGanGenerator(**settings).eval(), fastgan.FastGanDiscriminator(**shared).eval())


def load_gan(place: str, kind: str | None = None) -> Gan:
    """A trained GAN of a kind (of `GANS`; None: of any), from an exported pipeline or a training's checkpoint. Raises UserError."""
    field = "source.gan" if kind is None else f"source.gan.{kind}.weights"
    try:
        gan = checked(*networks_of(place), place) if is_checkpoint(place) else _from_pipeline(place)
    except UserError as error:
        raise said_of(field, error) from error
    if kind is not None and kind != (own := kind_of(gan)):
        what = f"{'a checkpoint of a' if is_checkpoint(place) else 'an exported'} {type(gan).__name__}"
        raise UserError(f"{field}: {place} is {what}; source.gan.{own}.weights for it, or here {FITTING[kind]}, would be right")
    return gan


def kind_of(gan: Gan) -> str:
    """The name under `source.gan` of its architecture."""
    return "stylegan2" if isinstance(gan, StyleGan2) else "fastgan"


def _from_pipeline(place: str) -> Gan:
    folder = locate_pipeline(place)
    name = read_json(folder, "model_index.json").get("_class_name")
    if name != GAN_PIPELINE:
        raise UserError(f"source.gan: {place} is a {name}, no GAN; an exported GAN's folder, or a checkpoint (.pt), would be right")
    generator, discriminator = (load_component(folder / part, place) for part in ("generator", "discriminator"))
    return checked(generator, discriminator, place)


def checked(generator: nn.Module, discriminator: nn.Module, place: str) -> Gan:
    """Generator and discriminator as a GAN. Raises UserError where kinds or sizes differ, or weights aren't all finite."""
    for network in (generator, discriminator):
        if (name := not_finite(network)) is not None:
            raise UserError(f"source.gan: the weights of {place} aren't all finite numbers, first {name}; undamaged ones would be right")
    kinds: tuple[tuple[Callable[[Any, Any], Gan], type[nn.Module], type[nn.Module]], ...] = (
        (StyleGan2, stylegan2.StyleGan2Generator, stylegan2.StyleGan2Discriminator),
        (FastGan, fastgan.FastGanGenerator, fastgan.FastGanDiscriminator),
    )
    for make, one, other in kinds:
        belong = isinstance(generator, one) and isinstance(discriminator, other)
        if belong and (generator.size, generator.channels) == (discriminator.size, discriminator.channels):
            return make(generator.eval(), discriminator.eval())
    raise UserError(f"source.gan: {place}'s generator and discriminator differ in kind or size; those saved together would be right")


def save_gan(gan: Gan, folder: Path) -> str:
    """Write what `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` loads; the file with the networks' code."""
    pipeline = GanPipeline(gan.generator, gan.discriminator)
    pipeline.save_pretrained(str(folder))
    module: ModuleType = stylegan2 if isinstance(gan, StyleGan2) else fastgan
    name = module.__name__.rsplit(".", 1)[1]
    source = files("fewshot_ray.models")
    (folder / "gan_pipeline.py").write_text((source / "gan_pipeline.py").read_text())
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = GAN_PIPELINE
    for part, network in (("generator", gan.generator), ("discriminator", gan.discriminator)):
        (folder / part / f"{name}.py").write_text((source / f"{name}.py").read_text())
        index[part] = [name, type(network).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return f"generator/{name}.py"
