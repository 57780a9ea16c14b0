"""StyleGAN2 a second time, as functions of a state dict in the common re-implementation's layout.

Weights are modulated one image at a time and convolved in groups, and filters are applied by a zero-inserting `upfirdn`: the
published formulation, where the project's scales activations instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64)


def kernel(gain: float = 1.0) -> Tensor:
    product = torch.outer(TAPS, TAPS)
    return product / product.sum() * gain


def upfirdn(x: Tensor, filter_: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Insert `up - 1` zeros after each pixel, pad, convolve, keep every `down`-th."""
    batch, channels, height, width = x.shape
    wide = torch.zeros((batch, channels, height * up, width * up), dtype=x.dtype)
    wide[:, :, ::up, ::up] = x
    wide = F.pad(wide, (pad[0], pad[1], pad[0], pad[1]))
    flipped = filter_.flip(0, 1)[None, None].to(x.dtype)
    out = F.conv2d(wide.reshape(batch * channels, 1, *wide.shape[2:]), flipped)
    return out.view(batch, channels, *out.shape[2:])[:, :, ::down, ::down]


def activated(x: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(x + bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * math.sqrt(2)


def linear(x: Tensor, state: State, name: str, *, lr: float = 1.0, activate: bool = False) -> Tensor:
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    out = F.linear(x, weight * (lr / math.sqrt(weight.shape[1])))
    return activated(out, bias * lr) if activate else out + bias * lr


def modulated(x: Tensor, style: Tensor, state: State, name: str, *, up: bool = False, demodulate: bool = True) -> Tensor:
    weight = state[f"{name}.weight"]
    _, c_out, c_in, k, _ = weight.shape
    batch = len(x)
    s = linear(style, state, f"{name}.modulation").view(batch, 1, c_in, 1, 1)
    w = weight / math.sqrt(c_in * k * k) * s
    if demodulate:
        w = w * torch.rsqrt(w.square().sum((2, 3, 4), keepdim=True) + 1e-8)
    grouped = x.reshape(1, batch * c_in, *x.shape[2:])
    if up:
        out = F.conv_transpose2d(grouped, w.transpose(1, 2).reshape(batch * c_in, c_out, k, k), stride=2, groups=batch)
        return upfirdn(out.view(batch, c_out, *out.shape[2:]), kernel(4.0), pad=(1, 1))
    out = F.conv2d(grouped, w.reshape(batch * c_out, c_in, k, k), padding=k // 2, groups=batch)
    return out.view(batch, c_out, *out.shape[2:])


def styled(x: Tensor, style: Tensor, noise: Tensor, state: State, name: str, *, up: bool = False) -> Tensor:
    out = modulated(x, style, state, f"{name}.conv", up=up) + state[f"{name}.noise.weight"] * noise
    return activated(out, state[f"{name}.activate.bias"])


def generate(state: State, z: Tensor) -> Tensor:
    """Images of z with the state's own noise images, one style for all layers."""
    w = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
    for layer in range(1, 1 + sum(name.startswith("style.") and name.endswith(".weight") for name in state)):
        w = linear(w, state, f"style.{layer}", lr=0.01, activate=True)
    x = state["input.input"].repeat(len(z), 1, 1, 1)
    x = styled(x, w, state["noises.noise_0"], state, "conv1")
    rgb = modulated(x, w, state, "to_rgb1.conv", demodulate=False) + state["to_rgb1.bias"]
    for level in range(sum(name.startswith("to_rgbs.") and name.endswith(".bias") and name.count(".") == 2 for name in state)):
        x = styled(x, w, state[f"noises.noise_{2 * level + 1}"], state, f"convs.{2 * level}", up=True)
        x = styled(x, w, state[f"noises.noise_{2 * level + 2}"], state, f"convs.{2 * level + 1}")
        part = modulated(x, w, state, f"to_rgbs.{level}.conv", demodulate=False) + state[f"to_rgbs.{level}.bias"]
        rgb = part + upfirdn(rgb, kernel(4.0), up=2, pad=(2, 1))
    return rgb


def conv(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, weight / math.sqrt(weight[0].numel()), stride=stride, padding=padding)


def judge(state: State, images: Tensor, group: int = 4) -> Tensor:
    """Logits [B, 1]."""
    x = activated(conv(images, state["convs.0.0.weight"]), state["convs.0.1.bias"])
    for block in range(1, 1 + sum(name.endswith("skip.1.weight") for name in state)):
        name = f"convs.{block}"
        out = activated(conv(x, state[f"{name}.conv1.0.weight"], padding=1), state[f"{name}.conv1.1.bias"])
        out = conv(upfirdn(out, kernel(), pad=(2, 2)), state[f"{name}.conv2.1.weight"], stride=2)
        out = activated(out, state[f"{name}.conv2.2.bias"])
        skip = conv(upfirdn(x, kernel(), pad=(1, 1)), state[f"{name}.skip.1.weight"], stride=2)
        x = (out + skip) / math.sqrt(2)
    batch, channels, height, width = x.shape
    size = min(batch, group)
    spread = x.view(size, -1, 1, channels, height, width)
    spread = torch.sqrt(spread.var(0, unbiased=False) + 1e-8).mean([2, 3, 4], keepdim=True).squeeze(2)
    x = torch.cat([x, spread.repeat(size, 1, height, width)], 1)
    x = activated(conv(x, state["final_conv.0.weight"], padding=1), state["final_conv.1.bias"])
    hidden = linear(x.reshape(batch, -1), state, "final_linear.0", activate=True)
    return linear(hidden, state, "final_linear.1")


def filters(state: State) -> dict[str, Tensor]:
    """The constant filters that the layout's state dicts hold besides the weights."""
    found = {}
    for name in state:
        if name.startswith("convs.") and name.endswith(".conv.weight") and int(name.split(".")[1]) % 2 == 0:
            found[name.replace("conv.weight", "conv.blur.kernel")] = kernel(4.0)
        if name.startswith("to_rgbs.") and name.endswith(".conv.weight"):
            found[name.replace("conv.weight", "upsample.kernel")] = kernel(4.0)
        if name.endswith(("conv2.1.weight", "skip.1.weight")):
            found[name.replace(".1.weight", ".0.kernel")] = kernel()
    return found
