"""FastGAN (Liu et al. 2021): this file alone (torch and diffusers only) loads an exported generator.

The published networks begin at 256x256; here they begin at 64x64, the smallest with a skip-layer excitation (4x4 to 64x64): a smaller
image's trunk has fewer levels, and the second, small image is half the size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

# `ModelMixin` is looked up in this module by `DiffusionPipeline.from_pretrained`, which else finds no way to load the network.
__all__ = ["FastGanDiscriminator", "FastGanGenerator", "Judgement", "ModelMixin", "Synthesis"]

LEAST, MOST = 64, 1024
GENERATOR_WIDTHS = {4: 16.0, 8: 8.0, 16: 4.0, 32: 2.0, 64: 2.0, 128: 1.0, 256: 0.5, 512: 0.25, 1024: 0.125}
DISCRIMINATOR_WIDTHS = {8: 16.0, 16: 8.0, 32: 4.0, 64: 2.0, 128: 1.0, 256: 0.5, 512: 0.25, 1024: 0.125}
"""Channels of the discriminator's maps, by twice (trunk) or four times (small branch) their resolution; at 8 of its first logits."""
DECODER_WIDTHS = {16: 128, 32: 64, 64: 64, 128: 32}
LAST = 8
"""Resolution of the discriminator's last maps."""


class Synthesis(NamedTuple):
    """A generator's images and activations."""

    image: Tensor
    """`[B, C, H, W]` in [-1, 1]."""
    small: Tensor
    """The same images at `small_size`, from an earlier layer."""
    features: dict[str, Tensor]
    """Activations by layer, `[B, c, h, w]`, in the order of the layers."""


class Judgement(NamedTuple):
    """A discriminator's logits and maps."""

    logits: Tensor
    """`[B, P]`: one logit per patch of the image and of the small image."""
    last: Tensor
    """The trunk's last map, `[B, c, 8, 8]`."""
    part: Tensor
    """The trunk's map before the last, `[B, c, 16, 16]`."""
    small: Tensor
    """The small branch's last map, `[B, c, 8, 8]`."""


def check_resolution(resolution: int) -> None:
    """Raise ValueError where `resolution` is no power of two that the networks can be built for."""
    if resolution < LEAST or resolution > MOST or resolution & (resolution - 1):
        raise ValueError(f"resolution is {resolution}; a power of two from {LEAST} to {MOST} is right")


def small_size(resolution: int) -> int:
    """Resolution of the second, small image."""
    return min(128, resolution // 2)


def resized(images: Tensor, size: int) -> Tensor:
    """The images resized to `[B, C, size, size]`, antialiased."""
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """A spectrally normalised convolution without bias."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
    nn.init.normal_(layer.weight, 0.0, 0.02)
    return spectral_norm(layer)


def norm(channels: int) -> nn.Module:
    """Batch normalisation."""
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight, 1.0, 0.02)
    return layer


class Noise(nn.Module):
    """Adds one noise image to all channels, by a learned weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """`noise` `[B or 1, 1, H, W]`."""
        return x + self.weight * noise


class Excitation(nn.Module):
    """Skip-layer excitation: a large map's channels are scaled by factors computed from a small map."""

    def __init__(self, channels_small: int, channels_large: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            conv(channels_small, channels_large, 4),
            nn.SiLU(),
            conv(channels_large, channels_large, 1),
            nn.Sigmoid(),
        )

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        """`[B, c, h, w]` and `[B, C, H, W]` to `[B, C, H, W]`."""
        scaled: Tensor = large * self.main(small)
        return scaled


class First(nn.Module):
    """The layer from the latent to the first 4x4 map."""

    def __init__(self, latent_dim: int, channels: int) -> None:
        super().__init__()
        layer = nn.ConvTranspose2d(latent_dim, 2 * channels, 4, bias=False)
        nn.init.normal_(layer.weight, 0.0, 0.02)
        self.main = nn.Sequential(spectral_norm(layer), norm(2 * channels), nn.GLU(dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """`[B, latent_dim]` to `[B, channels, 4, 4]`."""
        result: Tensor = self.main(z[:, :, None, None])
        return result


class Up(nn.Module):
    """Doubles the resolution: nearest neighbours, then one convolution or, where `noisy`, two with noise."""

    def __init__(self, channels_in: int, channels_out: int, *, noisy: bool) -> None:
        super().__init__()
        widths = [channels_in, channels_out] if noisy else [channels_in]
        self.convs = nn.ModuleList(conv(width, 2 * channels_out, 3, padding=1) for width in widths)
        self.norms = nn.ModuleList(norm(2 * channels_out) for _ in widths)
        self.noises = nn.ModuleList(Noise() for _ in widths) if noisy else None

    def forward(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """`[B, C, H, W]` to `[B, C', 2 H, 2 W]`."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        for index, (layer, normed) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = layer(x)
            x = x if self.noises is None else self.noises[index](x, noise[index])
            x = F.glu(normed(x), dim=1)
        return x


class FastGanGenerator(ModelMixin, ConfigMixin):
    """Generator with skip-layer excitation, from 64x64 to 1024x1024.

    Without `noise` the fixed noise stored in the model is used: in eval mode an image is a function of its latent. Raises ValueError
    for a resolution that is no power of two.
    """

    @register_to_config
    def __init__(self, resolution: int = 256, channels: int = 3, latent_dim: int = 256, width: int = 64) -> None:
        super().__init__()
        check_resolution(resolution)
        sizes = [2**level for level in range(2, resolution.bit_length())]
        widths = {size: max(1, int(GENERATOR_WIDTHS[size] * width)) for size in sizes}
        self.channels, self.size, self.latent_dim = channels, (resolution, resolution), latent_dim
        self.small_size = small_size(resolution)
        self.first = First(latent_dim, widths[4])
        self.noisy_sizes = [size for size in sizes[1:] if size.bit_length() % 2 == 0]
        """8, 32, 128, 512: their layers take two noise images each."""
        self.ups = nn.ModuleDict({str(size): Up(widths[size // 2], widths[size], noisy=size in self.noisy_sizes) for size in sizes[1:]})
        excited = [size for size in sizes if 64 <= size <= 512]
        self.excitations = nn.ModuleDict({str(size): Excitation(widths[size // 16], widths[size]) for size in excited})
        self.to_small = conv(widths[self.small_size], channels, 1)
        self.to_image = conv(widths[resolution], channels, 3, padding=1)
        self.noises = nn.Module()
        for index, shape in enumerate(self.noise_shapes):
            self.noises.register_buffer(f"noise_{index}", torch.randn(1, *shape))

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """`[1, H, W]` of each layer's noise."""
        return [(1, size, size) for size in self.noisy_sizes for _ in range(2)]

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers with features, in order: `b4`, `b8`, `b16`, ..."""
        return ["b4", *(f"b{size}" for size in self.ups)]

    def synthesis(self, z: Tensor, noise: Sequence[Tensor] | None = None) -> Synthesis:
        """Images of `z` `[B, latent_dim]`; `noise` is one `[B or 1, 1, H, W]` a shape of `noise_shapes`."""
        left = list(noise if noise is not None else self.noises.buffers())
        maps = {4: self.first(z)}
        for name, up in self.ups.items():
            size = int(name)
            taken = 2 if size in self.noisy_sizes else 0
            own, left = left[:taken], left[taken:]
            maps[size] = up(maps[size // 2], own)
            if name in self.excitations:
                maps[size] = self.excitations[name](maps[size // 16], maps[size])
        image = self.to_image(maps[self.size[0]]).tanh()
        return Synthesis(image, self.to_small(maps[self.small_size]).tanh(), {f"b{size}": x for size, x in maps.items()})

    def forward(self, z: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Images `[B, C, H, W]` of `z` `[B, latent_dim]`."""
        return self.synthesis(z, noise).image


def down(channels_in: int, channels_out: int) -> nn.Sequential:
    """Halves the resolution by one convolution."""
    return nn.Sequential(conv(channels_in, channels_out, 4, 2, 1), norm(channels_out), nn.LeakyReLU(0.2))


class ResidualDown(nn.Module):
    """Halves the resolution by two convolutions, beside a branch of pooling and one convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        second = (conv(channels_out, channels_out, 3, padding=1), norm(channels_out), nn.LeakyReLU(0.2))
        self.main = nn.Sequential(*down(channels_in, channels_out), *second)
        self.direct = nn.Sequential(nn.AvgPool2d(2), conv(channels_in, channels_out, 1), norm(channels_out), nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H / 2, W / 2]`."""
        result: Tensor = (self.main(x) + self.direct(x)) / 2
        return result


class Decoder(nn.Sequential):
    """An 8x8 map back to an image `[B, C, size, size]` in [-1, 1]."""

    def __init__(self, channels_in: int, channels: int, size: int) -> None:
        layers: list[nn.Module] = []
        width = channels_in
        for step in [2**level for level in range(4, size.bit_length())]:
            grown = DECODER_WIDTHS[step]
            layers += [nn.Upsample(scale_factor=2), conv(width, 2 * grown, 3, padding=1), norm(2 * grown), nn.GLU(dim=1)]
            width = grown
        super().__init__(*layers, conv(width, channels, 3, padding=1), nn.Tanh())


class FastGanDiscriminator(ModelMixin, ConfigMixin):
    """Discriminator of patches whose maps can be decoded to the images (self-supervision), from 64x64 to 1024x1024."""

    @register_to_config
    def __init__(self, resolution: int = 256, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        check_resolution(resolution)
        self.channels, self.size, self.small_size = channels, (resolution, resolution), small_size(resolution)
        at = {size: max(1, int(factor * width)) for size, factor in DISCRIMINATOR_WIDTHS.items()}
        sizes = [size for size in (256, 128, 64, 32, 16, 8) if size <= resolution]
        self.first = self._first(resolution, channels, at)
        self.downs = nn.ModuleDict({str(size): ResidualDown(at[4 * size], at[2 * size]) for size in sizes[1:]})
        self.excitations = nn.ModuleDict({str(s): Excitation(at[16 * s], at[2 * s]) for s in sizes[1:] if 8 * s in sizes})
        self.judge = nn.Sequential(conv(at[16], at[8], 1), norm(at[8]), nn.LeakyReLU(0.2), conv(at[8], 1, 4))
        steps = [size for size in (32, 16, 8) if 4 * size <= self.small_size]
        begun = (conv(channels, at[2 * self.small_size], 4, 2, 1), nn.LeakyReLU(0.2))
        self.small = nn.Sequential(*begun, *(down(at[8 * size], at[4 * size]) for size in steps))
        self.judge_small = conv(at[32], 1, 4)
        self.decode_last = Decoder(at[16], channels, self.small_size)
        self.decode_part = Decoder(at[32], channels, self.small_size)
        self.decode_small = Decoder(at[32], channels, self.small_size)
        self.hidden_dim = at[16] * LAST * LAST

    @staticmethod
    def _first(resolution: int, channels: int, at: dict[int, int]) -> nn.Sequential:
        """Layers to the trunk's first map: 256x256 for larger images, else of the image's own size."""
        if resolution <= 256:
            return nn.Sequential(conv(channels, at[2 * resolution], 3, padding=1), nn.LeakyReLU(0.2))
        if resolution == 512:
            return nn.Sequential(conv(channels, at[512], 4, 2, 1), nn.LeakyReLU(0.2))
        return nn.Sequential(conv(channels, at[1024], 4, 2, 1), nn.LeakyReLU(0.2), *down(at[1024], at[512]))

    def forward(self, images: Tensor, small: Tensor | None = None) -> Judgement:
        """The judgement of images `[B, C, H, W]` and their small versions: the generator's, or without `small` the images resized."""
        x = self.first(images)
        maps = {x.shape[-1]: x}
        for name, layer in self.downs.items():
            size = int(name)
            maps[size] = layer(maps[2 * size])
            if name in self.excitations:
                maps[size] = self.excitations[name](maps[8 * size], maps[size])
        own = small if small is not None else resized(images, self.small_size)
        last_small = self.small(own)
        logits = torch.cat([self.judge(maps[LAST]).flatten(1), self.judge_small(last_small).flatten(1)], dim=1)
        return Judgement(logits, maps[LAST], maps[2 * LAST], last_small)
