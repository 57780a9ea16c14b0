"""The interface of generator and discriminator that the methods use, the same for all architectures."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewshot_ray.models.fastgan import FastGanDiscriminator, FastGanGenerator, Judgement
from fewshot_ray.models.stylegan2 import StyleGan2Discriminator, StyleGan2Generator


class Made(NamedTuple):
    """A generator's images and activations."""

    image: Tensor
    """`[B, C, H, W]`, about in [-1, 1]."""
    small: Tensor | None
    """A second, smaller version of the images, where the architecture generates one."""
    features: Mapping[str, Tensor]
    """`G^l`: activations by layer, `[B, c, h, w]`."""


class View(ABC):
    """A discriminator's outputs on images, each computed when first used."""

    @property
    @abstractmethod
    def hidden(self) -> Tensor:
        """`d^1` `[B, hidden_dim]`: the input of the last layer."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Logits `[B, P]`, positive for real: one per image, or one per patch."""

    @abstractmethod
    def map(self, size: int) -> Tensor:
        """The trunk's map of this resolution, one of the GAN's `patch_maps`, `[B, c, size, size]`."""


class Gan(ABC):
    """A generator and the discriminator it is trained against."""

    generator: nn.Module
    discriminator: nn.Module
    channels: int
    size: tuple[int, int]
    latent_dim: int
    hidden_dim: int
    distance_layers: Sequence[str]
    """The generator's layers whose features methods compare by default."""
    layer_names: Sequence[str]
    """All of the generator's layers with features, in order."""
    patch_maps: Mapping[int, int]
    """Channels, by resolution, of the trunk's maps that mixtures' patches are judged on; empty where the logits are of patches already."""
    noise_shapes: Sequence[tuple[int, int, int]]
    """`[1, H, W]` of each noise image the generator takes."""

    @property
    @abstractmethod
    def discriminator_blocks(self) -> Sequence[nn.Module]:
        """The discriminator's blocks in order from the image on, one per resolution."""

    @abstractmethod
    def codes(self, z: Tensor) -> Tensor:
        """Codes `[B, latent_dim]` of `z` `[B, latent_dim]`: the space in which latents are mixed and interpolated."""

    @abstractmethod
    def make(self, codes: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """Images of codes `[B, latent_dim]`; without `noise`, with the generator's stored noise."""

    @abstractmethod
    def view(self, image: Tensor, small: Tensor | None = None) -> View:
        """The discriminator's outputs on images."""

    def copy(self) -> Gan:
        """A copy with separate weights."""
        twin = copy.copy(self)
        twin.generator, twin.discriminator = copy.deepcopy(self.generator), copy.deepcopy(self.discriminator)
        return twin

    def to(self, device: torch.device) -> Gan:
        """Move both networks; returns itself."""
        self.generator.to(device)
        self.discriminator.to(device)
        return self


class StyleGan2(Gan):
    """StyleGAN2: its codes are w, the mapping network's output."""

    generator: StyleGan2Generator
    discriminator: StyleGan2Discriminator

    def __init__(self, generator: StyleGan2Generator, discriminator: StyleGan2Discriminator) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.channels, self.size, self.latent_dim = generator.channels, generator.size, generator.latent_dim
        self.hidden_dim = discriminator.hidden_dim
        self.layer_names = generator.layer_names
        self.distance_layers = generator.layer_names[1:-1]
        self.noise_shapes = generator.noise_shapes
        widths = discriminator.trunk_widths
        sizes = [size for size in widths if size in ((32, 16) if self.size[0] >= 64 else list(widths)[:2])]
        self.patch_maps = {size: widths[size] for size in sizes}

    @property
    def discriminator_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the trunk."""
        return list(self.discriminator.convs)

    def codes(self, z: Tensor) -> Tensor:
        """w `[B, latent_dim]` of `z` `[B, latent_dim]`."""
        return self.generator.mapping(z)

    def make(self, codes: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """Images of w `[B, latent_dim]`, the same for all layers."""
        return self.make_styles(self.generator.styles(codes), noise)

    def make_styles(self, styles: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """Images of styles `[B, style_count, latent_dim]`."""
        image, features = self.generator.synthesis(styles, noise)
        return Made(image, None, features)

    def view(self, image: Tensor, small: Tensor | None = None) -> StyleGan2View:
        """The discriminator's outputs on images; there is no small version."""
        return StyleGan2View(self.discriminator, image)


class StyleGan2View(View):
    """One pass through the trunk, only as deep as what is used of it."""

    def __init__(self, discriminator: StyleGan2Discriminator, image: Tensor) -> None:
        self.discriminator = discriminator
        self._maps: dict[int, Tensor] = {}
        self._image = image

    @cached_property
    def hidden(self) -> Tensor:
        """`d^1` `[B, hidden_dim]`, from the 4x4 map."""
        return self.discriminator.hidden(self.map(4))

    @property
    def logits(self) -> Tensor:
        """Logits `[B, 1]`, positive for real."""
        return self.discriminator.judge(self.hidden)

    def map(self, size: int) -> Tensor:
        """The trunk's map `[B, c, size, size]`, computed from the deepest one there is."""
        x = self._image if not self._maps else self._maps[min(self._maps)]
        for deeper, layer in self.discriminator.trunk_layers.items():
            if size <= deeper < min(self._maps, default=2 * self._image.shape[-1]):
                x = self._maps[deeper] = layer(x)
        return self._maps[size]


class FastGan(Gan):
    """FastGAN: its codes are the latents themselves."""

    generator: FastGanGenerator
    discriminator: FastGanDiscriminator

    def __init__(self, generator: FastGanGenerator, discriminator: FastGanDiscriminator) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.channels, self.size, self.latent_dim = generator.channels, generator.size, generator.latent_dim
        self.hidden_dim = discriminator.hidden_dim
        self.layer_names = generator.layer_names
        self.distance_layers = [name for name in generator.layer_names if name in ("b4", "b8", "b16", "b32")]
        self.noise_shapes = generator.noise_shapes
        self.patch_maps = {}

    @property
    def discriminator_blocks(self) -> Sequence[nn.Module]:
        """The blocks of the trunk."""
        return [self.discriminator.first, *self.discriminator.downs.values()]

    def codes(self, z: Tensor) -> Tensor:
        """`z` itself."""
        return z

    def make(self, codes: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """Images of latents `[B, latent_dim]`, and their small versions."""
        return Made(*self.generator.synthesis(codes, noise))

    def view(self, image: Tensor, small: Tensor | None = None) -> FastGanView:
        """The discriminator's outputs on images and their small versions."""
        return FastGanView(self.discriminator, image, small)


class FastGanView(View):
    """One pass of the whole discriminator."""

    def __init__(self, discriminator: FastGanDiscriminator, image: Tensor, small: Tensor | None) -> None:
        self.image = image
        self.judgement: Judgement = discriminator(image, small)

    @property
    def hidden(self) -> Tensor:
        """The trunk's last map, flattened to `[B, hidden_dim]`."""
        return self.judgement.last.flatten(1)

    @property
    def logits(self) -> Tensor:
        """Logits `[B, P]` of 5x5 patches of the image and as many of the small image."""
        return self.judgement.logits

    def map(self, size: int) -> Tensor:
        """Raises ValueError: `patch_maps` is empty, since the logits are of patches already."""
        raise ValueError(f"FastGAN's trunk has no map of {size} for patches; its logits are of patches already")
