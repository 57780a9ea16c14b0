"""DiffFit (Xie et al. 2023): which parameters it trains, and its scale factors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

CLASS_EMBEDDINGS = {"class_embedder", "class_embedding"}


def difffit_names(network: nn.Module) -> set[str]:
    """Names of the biases, the norms' affine parameters, the class embeddings and the gammas.

    Norms are recognised by type: by name, a DiT block's whole modulation (`norm1.linear`) would count as one.
    """
    names = set()
    for prefix, module in network.named_modules():
        norm = isinstance(module, (nn.GroupNorm, nn.LayerNorm))
        embedding = not CLASS_EMBEDDINGS.isdisjoint(prefix.split("."))
        for name, _ in module.named_parameters(prefix, recurse=False):
            if norm or embedding or name.endswith((".bias", ".gamma")):
                names.add(name)
    return names


def add_gammas(network: nn.Module) -> Callable[[], None]:
    """Scale every attention, feed-forward and residual branch by a new parameter `gamma`, one value per channel, 1 at first.

    Returns a function that folds the gammas into the weights and biases before them and removes them; it may be called again.
    """
    scaled = []
    for layer in _last_layers(network):
        gamma = torch.ones(len(layer.weight), dtype=layer.weight.dtype, device=layer.weight.device)
        layer.register_parameter("gamma", nn.Parameter(gamma))
        scaled.append((layer, layer.register_forward_hook(_scale)))

    def fold() -> None:
        while scaled:
            layer, hook = scaled.pop()
            hook.remove()
            _fold(layer)

    return fold


def _last_layers(network: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """The last layer of every branch: what follows in a branch (dropout, division by a constant) commutes with the factor."""
    for module in network.modules():
        if isinstance(module, Attention):
            yield module.to_out[0]
        elif isinstance(module, FeedForward):
            yield module.net[2]
        elif isinstance(module, ResnetBlock2D):
            yield module.conv2


def _scale(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """`gamma * output`, for `[B, N, C]` after a linear layer, `[B, C, H, W]` after a convolution; in the output's precision."""
    gamma: Tensor = layer.gamma if isinstance(layer, nn.Linear) else layer.gamma[:, None, None]  # type: ignore[assignment, index]
    return (gamma * output).to(output.dtype)


@torch.no_grad()
def _fold(layer: nn.Linear | nn.Conv2d) -> None:
    """`gamma (W x + b) = (gamma W) x + gamma b`, in place."""
    gamma: Tensor = layer.gamma  # type: ignore[assignment]
    layer.weight.mul_(gamma.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    if layer.bias is not None:
        layer.bias.mul_(gamma)
    del layer.gamma
