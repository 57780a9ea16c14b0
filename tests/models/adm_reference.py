"""A second version of the ADM network, by the original's parameter names: the oracle for reading its checkpoints.

Written from Dhariwal & Nichol 2021 (arXiv 2105.05233) and the names in their checkpoints, with none of diffusers' or our own code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-5)


def embed_time(t: Tensor, channels: int) -> Tensor:
    """`[B]` to `[B, channels]`: all cosines, then all sines, of t / 10000^(i / half).

    Frequencies by exp and log in float32, as the networks were trained: another way moves the angles at t = 1000 by 5e-5.
    """
    half = channels // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """`resample` is what happens to both branches before the first convolution: 'up', 'down' or nothing."""

    def __init__(self, c_in: int, c_out: int, c_time: int, scale_shift: bool, resample: str | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(c_time, c_out * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(norm(c_out), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            B, C, H, W = x.shape
            return x.reshape(B, C, H // 2, 2, W // 2, 2).mean(dim=(3, 5))
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) if self.resample == "up" else x

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.in_layers[2](self._resampled(F.silu(self.in_layers[0](x))))
        time = self.emb_layers(time)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.split(h.shape[1], dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + time)
        return self.skip_connection(self._resampled(x)) + h


class Attention(nn.Module):
    """Explicit softmax attention, a head at a time; `new_order` tells where in `qkv` a head's queries, keys and values lie."""

    def __init__(self, channels: int, heads: int, new_order: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        C, d = flat.shape[1], flat.shape[1] // self.heads
        qkv = self.qkv(self.norm(flat))
        outputs = []
        for head in range(self.heads):
            starts = [part * C + head * d for part in range(3)] if self.new_order else [(3 * head + part) * d for part in range(3)]
            q, k, v = (qkv[:, start : start + d] for start in starts)
            weights = (q.transpose(1, 2) @ k / math.sqrt(d)).softmax(dim=-1)
            outputs.append(v @ weights.transpose(1, 2))
        return x + self.proj_out(torch.cat(outputs, dim=1)).reshape(x.shape)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


def run(layers: Iterable[nn.Module], x: Tensor, time: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x, time) if isinstance(layer, Residual) else layer(x)
    return x


class AdmReference(nn.Module):
    """`[B, 3, H, W]` and `[B]` to `[B, channels_out, H, W]`; `attention_levels` counts from the finest, 0."""

    def __init__(
        self,
        *,
        width: int,
        multiples: tuple[float, ...],
        layers: int,
        attention_levels: tuple[int, ...],
        heads: int | None = None,
        head_channels: int | None = None,
        scale_shift: bool = True,
        residual_resampling: bool = False,
        new_order: bool = False,
        channels_out: int = 3,
    ) -> None:
        super().__init__()
        self.width = width
        c_time = 4 * width

        def residual(c_in: int, c_out: int, resample: str | None = None) -> Residual:
            return Residual(c_in, c_out, c_time, scale_shift, resample)

        def attention(channels: int) -> Attention:
            return Attention(channels, heads if head_channels is None else channels // head_channels, new_order)

        def resampler(channels: int, way: str) -> nn.Module:
            if residual_resampling:
                return residual(channels, channels, way)
            return Downsample(channels) if way == "down" else Upsample(channels)

        self.time_embed = nn.Sequential(nn.Linear(width, c_time), nn.SiLU(), nn.Linear(c_time, c_time))
        widths = [int(multiple * width) for multiple in multiples]
        last = len(widths) - 1
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, widths[0], 3, padding=1)])])
        skips, channels = [widths[0]], widths[0]
        for level, c in enumerate(widths):
            for _ in range(layers):
                attended = [attention(c)] if level in attention_levels else []
                self.input_blocks.append(nn.ModuleList([residual(channels, c), *attended]))
                skips.append(c)
                channels = c
            if level < last:
                self.input_blocks.append(nn.ModuleList([resampler(c, "down")]))
                skips.append(c)
        self.middle_block = nn.ModuleList([residual(channels, channels), attention(channels), residual(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(layers + 1):
                block = [residual(channels + skips.pop(), widths[level])]
                channels = widths[level]
                if level in attention_levels:
                    block.append(attention(channels))
                if level > 0 and i == layers:
                    block.append(resampler(channels, "up"))
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, channels_out, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.time_embed(embed_time(t, self.width).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = run(block, x, time)
            skips.append(x)
        x = run(self.middle_block, x, time)
        for block in self.output_blocks:
            x = run(block, torch.cat([x, skips.pop()], dim=1), time)
        return self.out(x)


def seeded(network: nn.Module, seed: int) -> nn.Module:
    """Random weights in every layer, those that training starts at zero and all biases too: outputs and attention's logits of order 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.data = noise / math.sqrt(parameter[0].numel())
        else:
            parameter.data = 0.2 * noise + (1.0 if is_norm_weight(name) else 0.0)
    return network.eval()


def is_norm_weight(name: str) -> bool:
    return name.endswith((".norm.weight", "in_layers.0.weight", "out_layers.0.weight", "out.0.weight"))
