"""Generator and discriminator as the methods see them, whichever architecture they have."""

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
    """What a generator made."""

    image: Tensor
    """`[B, C, H, W]`, about [-1, 1]."""
    small: Tensor | None
    """A second, smaller image, where the architecture makes one."""
    features: Mapping[str, Tensor]
    """`G^l`: activations by layer, `[B, c, h, w]`."""


class View(ABC):
    """What a discriminator makes of images, each thing computed when first asked for."""

    @property
    @abstractmethod
    def hidden(self) -> Tensor:
        """`d^1` `[B, hidden_dim]`: what the last layer judges by."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """`[B, P]`, positive for real: one an image, or one a patch."""

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
    """The generator's layers that a method compares images by, unless told otherwise."""
    layer_names: Sequence[str]
    """All of the generator's layers with features, in order."""
    patch_maps: Mapping[int, int]
    """Channels of the trunk's maps, by resolution, that patches are judged on; empty where the discriminator judges patches anyway."""
    noise_shapes: Sequence[tuple[int, int, int]]
    """`[1, H, W]` of each noise image the generator takes."""

    @property
    @abstractmethod
    def discriminator_blocks(self) -> Sequence[nn.Module]:
        """The discriminator's parts from the image on, each at a resolution of its own."""

    @abstractmethod
    def codes(self, z: Tensor) -> Tensor:
        """`[B, latent_dim]` of `z` `[B, latent_dim]`: the space that latents are mixed and interpolated in."""

    @abstractmethod
    def make(self, codes: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """Images of codes `[B, latent_dim]`; with the generator's own noise where none is given."""

    @abstractmethod
    def view(self, image: Tensor, small: Tensor | None = None) -> View:
        """The discriminator's look at images."""

    def copy(self) -> Gan:
        """One with weights of its own."""
        twin = copy.copy(self)
        twin.generator, twin.discriminator = copy.deepcopy(self.generator), copy.deepcopy(self.discriminator)
        return twin

    def to(self, device: torch.device) -> Gan:
        """Itself, moved."""
        self.generator.to(device)
        self.discriminator.to(device)
        return self


class StyleGan2(Gan):
    """Codes are W's."""

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
        """The trunk's."""
        return list(self.discriminator.convs)

    def codes(self, z: Tensor) -> Tensor:
        """See `Gan`."""
        return self.generator.mapping(z)

    def make(self, codes: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """See `Gan`."""
        return self.make_styles(self.generator.styles(codes), noise)

    def make_styles(self, styles: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """Images of styles `[B, style_count, latent_dim]`."""
        image, features = self.generator.synthesis(styles, noise)
        return Made(image, None, features)

    def view(self, image: Tensor, small: Tensor | None = None) -> StyleGan2View:
        """See `Gan`."""
        return StyleGan2View(self.discriminator, image)


class StyleGan2View(View):
    """One pass through the trunk, no deeper than what is asked for."""

    def __init__(self, discriminator: StyleGan2Discriminator, image: Tensor) -> None:
        self.discriminator = discriminator
        self._maps: dict[int, Tensor] = {}
        self._image = image

    @cached_property
    def hidden(self) -> Tensor:
        """See `View`."""
        return self.discriminator.hidden(self.map(4))

    @property
    def logits(self) -> Tensor:
        """`[B, 1]`."""
        return self.discriminator.judge(self.hidden)

    def map(self, size: int) -> Tensor:
        """See `View`."""
        x = self._image if not self._maps else self._maps[min(self._maps)]
        for deeper, layer in self.discriminator.trunk_layers.items():
            if size <= deeper < min(self._maps, default=2 * self._image.shape[-1]):
                x = self._maps[deeper] = layer(x)
        return self._maps[size]


class FastGan(Gan):
    """Codes are the latents themselves."""

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
        """The trunk's."""
        return [self.discriminator.first, *self.discriminator.downs.values()]

    def codes(self, z: Tensor) -> Tensor:
        """See `Gan`."""
        return z

    def make(self, codes: Tensor, noise: Sequence[Tensor] | None = None) -> Made:
        """See `Gan`."""
        return Made(*self.generator.synthesis(codes, noise))

    def view(self, image: Tensor, small: Tensor | None = None) -> FastGanView:
        """See `Gan`."""
        return FastGanView(self.discriminator, image, small)


class FastGanView(View):
    """One pass."""

    def __init__(self, discriminator: FastGanDiscriminator, image: Tensor, small: Tensor | None) -> None:
        self.image = image
        self.judgement: Judgement = discriminator(image, small)

    @property
    def hidden(self) -> Tensor:
        """The trunk's last map, flattened."""
        return self.judgement.last.flatten(1)

    @property
    def logits(self) -> Tensor:
        """Of 5x5 patches of the image, and as many of the small image."""
        return self.judgement.logits

    def map(self, size: int) -> Tensor:
        """None: the discriminator judges patches as it is."""
        raise ValueError(f"FastGAN's trunk isn't asked for its map of {size}; its logits are of patches already")
