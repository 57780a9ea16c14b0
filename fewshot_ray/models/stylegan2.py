"""StyleGAN2 (Karras et al. 2020): this file alone (torch and diffusers only) loads an exported generator.

Parameters have the names of the common PyTorch re-implementation (`g_ema`, `d`), so that its state dicts fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

# `ModelMixin` is looked up in this module by `DiffusionPipeline.from_pretrained`, which else finds no way to load the network.
__all__ = ["ModelMixin", "StyleGan2Discriminator", "StyleGan2Generator", "Synthesis"]

GAIN = math.sqrt(2)
"""Gain of the leaky ReLU, which keeps the activations' variance."""


class Synthesis(NamedTuple):
    """A generator's images and activations."""

    image: Tensor
    """`[B, C, H, W]`, about in [-1, 1], not clamped."""
    features: dict[str, Tensor]
    """Activations by layer, `[B, c, h, w]`, in the order of the layers."""


def check_resolution(resolution: int, least: int, most: int) -> None:
    """Raise ValueError where `resolution` is no power of two from `least` to `most`."""
    if resolution < least or resolution > most or resolution & (resolution - 1):
        raise ValueError(f"resolution is {resolution}; a power of two from {least} to {most} is right")


def widths(resolution: int, base: int, most: int) -> dict[int, int]:
    """Channels at each resolution from 4 up: `min(most, base / resolution)`."""
    return {2**level: max(1, min(most, base // 2**level)) for level in range(2, resolution.bit_length())}


def blur(x: Tensor, padding: tuple[int, int], *, gain: float = 1.0) -> Tensor:
    """Convolve `[B, C, H, W]` with the binomial filter [1, 3, 3, 1] in both directions, with sum `gain`; `padding` before and after."""
    place = torch.arange(4, dtype=x.dtype, device=x.device)
    taps = (1 + place * (3 - place)) / 8  # computed where x is: a GPU would wait for numbers from the host
    kernel = (torch.outer(taps, taps) * gain).expand(x.shape[1], 1, 4, 4)
    before, after = padding
    return F.conv2d(F.pad(x, (before, after, before, after)), kernel, groups=x.shape[1])


def upsample(x: Tensor) -> Tensor:
    """Double the resolution: zeros between the pixels, then the filter."""
    batch, channels, height, width = x.shape
    spread = x.new_zeros((batch, channels, height, 2, width, 2))
    spread[:, :, :, 0, :, 0] = x
    return blur(spread.view(batch, channels, 2 * height, 2 * width), (2, 1), gain=4.0)


class PixelNorm(nn.Module):
    """Scales each latent to a mean square of 1."""

    def forward(self, z: Tensor) -> Tensor:
        """`[B, D]`."""
        return z * torch.rsqrt(z.square().mean(dim=1, keepdim=True) + 1e-8)


class Bias(nn.Module):
    """`sqrt(2) leaky_relu(x + bias)`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...]`."""
        return F.leaky_relu(x + self.bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * GAIN


class EqualLinear(nn.Module):
    """A linear layer at equalised learning rate (Karras et al. 2018): weights are standard normal, and scaled when used."""

    def __init__(
        self, features_in: int, features_out: int, *, bias: float = 0.0, lr_multiplier: float = 1.0, activate: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features_out, features_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((features_out,), bias))
        self.scale = lr_multiplier / math.sqrt(features_in)
        self.lr_multiplier = lr_multiplier
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        """`[B, features_in]` to `[B, features_out]`."""
        x = F.linear(x, self.weight * self.scale, self.bias * self.lr_multiplier)
        return F.leaky_relu(x, 0.2) * GAIN if self.activate else x


class EqualConv2d(nn.Module):
    """A convolution at equalised learning rate."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None
        self.scale = 1 / math.sqrt(channels_in * kernel**2)
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """`[B, channels_in, H, W]` to `[B, channels_out, H', W']`."""
        return F.conv2d(x, self.weight * self.scale, self.bias, stride=self.stride, padding=self.padding)


class ModulatedConv2d(nn.Module):
    """A convolution whose input channels a style scales, and whose output is scaled to unit variance again (Eq. 1 and 3).

    Input and output are scaled instead of the weights: the result is the same, with one convolution for the whole batch.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, style_dim: int, *, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, channels_out, channels_in, kernel, kernel))
        self.modulation = EqualLinear(style_dim, channels_in, bias=1.0)
        self.scale = 1 / math.sqrt(channels_in * kernel**2)
        self.demodulate, self.up, self.padding = demodulate, up, kernel // 2

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """`x` `[B, channels_in, H, W]`, `style` `[B, style_dim]`."""
        s, weight = self.modulation(style), self.weight[0] * self.scale
        x = x * s[:, :, None, None]
        if self.up:
            x = blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), (1, 1), gain=4.0)
        else:
            x = F.conv2d(x, weight, padding=self.padding)
        if self.demodulate:
            sigma = torch.rsqrt(F.linear(s.square(), weight.square().sum(dim=(2, 3))) + 1e-8)
            x = x * sigma[:, :, None, None]
        return x


class Noise(nn.Module):
    """Adds one noise image to all channels, by a learned weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """`noise` `[B or 1, 1, H, W]`."""
        return x + self.weight * noise


class StyledConv(nn.Module):
    """Modulated convolution, noise, bias and leaky ReLU."""

    def __init__(self, channels_in: int, channels_out: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(channels_in, channels_out, 3, style_dim, up=up)
        self.noise = Noise()
        self.activate = Bias(channels_out)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """`[B, channels_out, H', W']` from `x` `[B, channels_in, H, W]`, `style` `[B, style_dim]` and `noise` `[B or 1, 1, H', W']`."""
        result: Tensor = self.activate(self.noise(self.conv(x, style), noise))
        return result


class ToRgb(nn.Module):
    """The contribution of one resolution to the image, added to the upsampled image so far."""

    def __init__(self, channels: int, image_channels: int, style_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(channels, image_channels, 1, style_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, image_channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor, image: Tensor | None) -> Tensor:
        """RGB `[B, C, H, W]`; `image` is the image so far, at half the resolution, or None at the first."""
        part = self.conv(x, style) + self.bias
        total: Tensor = part if image is None else part + upsample(image)
        return total


class Constant(nn.Module):
    """The learned 4x4 map that synthesis starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class StyleGan2Generator(ModelMixin, ConfigMixin):
    """Mapping network and skip generator, from 8x8 to 1024x1024.

    Without `noise` the fixed noise stored in the model is used: an image is a function of its latent. Raises ValueError for a
    resolution that is no power of two.
    """

    @register_to_config
    def __init__(
        self,
        resolution: int = 256,
        channels: int = 3,
        latent_dim: int = 512,
        mapping_layers: int = 8,
        channel_base: int = 32768,
        channel_max: int = 512,
        mapping_lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        check_resolution(resolution, 8, 1024)
        width = widths(resolution, channel_base, channel_max)
        self.channels, self.size, self.latent_dim = channels, (resolution, resolution), latent_dim
        mapping = [EqualLinear(latent_dim, latent_dim, lr_multiplier=mapping_lr_multiplier, activate=True) for _ in range(mapping_layers)]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = Constant(width[4])
        self.conv1 = StyledConv(width[4], width[4], latent_dim)
        self.to_rgb1 = ToRgb(width[4], channels, latent_dim)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for size in list(width)[1:]:
            self.convs.append(StyledConv(width[size // 2], width[size], latent_dim, up=True))
            self.convs.append(StyledConv(width[size], width[size], latent_dim))
            self.to_rgbs.append(ToRgb(width[size], channels, latent_dim))
        for index, shape in enumerate(self.noise_shapes):
            self.noises.register_buffer(f"noise_{index}", torch.randn(1, *shape))

    @property
    def style_count(self) -> int:
        """Styles per image: one per convolution, and one for the last to-RGB layer."""
        return len(self.convs) + 2

    @property
    def noise_shapes(self) -> list[tuple[int, int, int]]:
        """`[1, H, W]` of each layer's noise."""
        return [(1, 2 ** ((index + 5) // 2), 2 ** ((index + 5) // 2)) for index in range(len(self.convs) + 1)]

    @property
    def layer_names(self) -> list[str]:
        """Names of the layers with features, in order: `b4.conv1`, `b8.conv0`, `b8.conv1`, ..."""
        sizes = [height for _, height, _ in self.noise_shapes]
        return ["b4.conv1", *(f"b{size}.conv{index % 2}" for index, size in enumerate(sizes[1:]))]

    def mapping(self, z: Tensor) -> Tensor:
        """`w` `[B, latent_dim]` of `z` `[B, latent_dim]`, standard normal."""
        w: Tensor = self.style(z)
        return w

    def styles(self, w: Tensor, other: Tensor | None = None, crossover: int = 0) -> Tensor:
        """`[B, style_count, latent_dim]`: `w` for all layers or, mixed, for those before `crossover` and `other` from there on."""
        repeated = w[:, None].expand(-1, self.style_count, -1)
        if other is None:
            return repeated
        return torch.cat([repeated[:, :crossover], other[:, None].expand(-1, self.style_count - crossover, -1)], dim=1)

    def synthesis(self, styles: Tensor, noise: Sequence[Tensor] | None = None) -> Synthesis:
        """Images of `styles` `[B, style_count, latent_dim]`; `noise` is one `[B or 1, 1, H, W]` per layer."""
        given = noise if noise is not None else list(self.noises.buffers())
        x = self.conv1(self.input.input.expand(len(styles), -1, -1, -1), styles[:, 0], given[0])
        features = {"b4.conv1": x}
        image = self.to_rgb1(x, styles[:, 1], None)
        for index, to_rgb in enumerate(self.to_rgbs):
            for layer in (2 * index, 2 * index + 1):
                x = self.convs[layer](x, styles[:, layer + 1], given[layer + 1])
                features[self.layer_names[layer + 1]] = x
            image = to_rgb(x, styles[:, 2 * index + 3], image)
        return Synthesis(image, features)

    def forward(self, z: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Images `[B, C, H, W]` of `z` `[B, latent_dim]`."""
        return self.synthesis(self.styles(self.mapping(z)), noise).image


class ConvLayer(nn.Sequential):
    """Convolution, bias and leaky ReLU; with `down`, the filter and a stride of 2."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, *, down: bool = False, activate: bool = True) -> None:
        total = 2 + kernel - 1
        layers: list[nn.Module] = [Blur((total + 1) // 2, total // 2)] if down else []
        stride, padding = (2, 0) if down else (1, kernel // 2)
        layers.append(EqualConv2d(channels_in, channels_out, kernel, stride=stride, padding=padding))
        super().__init__(*layers, *([Bias(channels_out)] if activate else []))


class Blur(nn.Module):
    """The binomial filter [1, 3, 3, 1] in both directions, of sum 1, as a layer."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.padding = (before, after)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C, H', W']`."""
        return blur(x, self.padding)


class ResBlock(nn.Module):
    """Two convolutions and a skip branch, to half the resolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(channels_in, channels_in, 3)
        self.conv2 = ConvLayer(channels_in, channels_out, 3, down=True)
        self.skip = ConvLayer(channels_in, channels_out, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H / 2, W / 2]`."""
        result: Tensor = (self.conv2(self.conv1(x)) + self.skip(x)) / GAIN
        return result


def stddev_map(x: Tensor, group: int) -> Tensor:
    """`[B, 1, H, W]`: the standard deviation over the images of a group, averaged over channels and pixels.

    Image i of B belongs to group `i mod (B / group)`, so that every worker's `rank::workers` slice holds whole groups where the
    workers divide the number of groups. A batch smaller than the group is one group; raises ValueError where groups don't divide it.
    """
    batch, _, height, width = x.shape
    size = min(group, batch)
    if batch % size:
        raise ValueError(f"{batch} images are no whole groups of {size}")
    deviation = (x.unflatten(0, (size, -1)).var(dim=0, unbiased=False) + 1e-8).sqrt()
    of_group: Tensor = deviation.mean(dim=(1, 2, 3))
    return of_group.repeat(size)[:, None, None, None].expand(-1, 1, height, width)


class StyleGan2Discriminator(ModelMixin, ConfigMixin):
    """Residual discriminator with minibatch standard deviation, from 8x8 to 1024x1024."""

    @register_to_config
    def __init__(
        self, resolution: int = 256, channels: int = 3, channel_base: int = 32768, channel_max: int = 512, stddev_group: int = 4
    ) -> None:
        super().__init__()
        check_resolution(resolution, 8, 1024)
        width = widths(resolution, channel_base, channel_max)
        self.channels, self.size, self.stddev_group = channels, (resolution, resolution), stddev_group
        self.trunk_widths = dict(reversed(width.items()))
        """Channels of the trunk's maps by their resolution, largest first."""
        blocks = [ResBlock(width[size], width[size // 2]) for size in list(self.trunk_widths)[:-1]]
        self.convs = nn.Sequential(ConvLayer(channels, width[resolution], 1), *blocks)
        self.final_conv = ConvLayer(width[4] + 1, width[4], 3)
        self.hidden_dim = width[4]
        self.final_linear = nn.Sequential(EqualLinear(width[4] * 16, width[4], activate=True), EqualLinear(width[4], 1))

    @property
    def trunk_layers(self) -> dict[int, nn.Module]:
        """The layers that compute each of the trunk's maps from the one before, and the largest from the image."""
        return dict(zip(self.trunk_widths, self.convs, strict=True))

    def trunk(self, images: Tensor) -> Tensor:
        """The trunk's last map `[B, c, 4, 4]` of images `[B, C, H, W]`."""
        x: Tensor = self.convs(images)
        return x

    def hidden(self, last: Tensor) -> Tensor:
        """`d^1` `[B, hidden_dim]` of the trunk's last map: the input of the last linear layer."""
        x = self.final_conv(torch.cat([last, stddev_map(last, self.stddev_group)], dim=1))
        hidden: Tensor = self.final_linear[0](x.flatten(1))
        return hidden

    def judge(self, hidden: Tensor) -> Tensor:
        """`d^2`: logits `[B, 1]` of `hidden`, positive for real."""
        logits: Tensor = self.final_linear[1](hidden)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[B, 1]` of images `[B, C, H, W]`."""
        return self.judge(self.hidden(self.trunk(images)))
