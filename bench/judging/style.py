"""Whether samples of the digits benchmark are in the target's style, and of which class: what claims on biased shots are about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewshot_ray.data.digits import SEEN_CLASSES, digits
from fewshot_ray.data.images import to_model_range
from fewshot_ray.metrics.digit_network import DigitNetwork
from fewshot_ray.metrics.extractors import load_extractor

EPOCHS, BATCH_IMAGES, LEARNING_RATE = 20, 50, 2e-3
FLIPPED_SHARE = 0.1
"""Share of pixels that are replaced by another image's while the network is trained, so that single pixels don't decide."""


@dataclass(frozen=True)
class Shares:
    """Of samples uint8 [N, 1, 8, 8]."""

    style: float
    """Share in the target's style."""
    unseen: float
    """Share in the target's style and of the classes 5 to 9, which biased shots lack."""


def shares(samples: Tensor) -> Shares:
    """By two networks that see neither shots nor samples of any trial: one of style, and the digit network's classes."""
    images = to_model_range(samples)
    with torch.no_grad():
        styled = style_network()(images).argmax(1) == 1
        unseen = classes(samples) >= SEEN_CLASSES
    return Shares(float(styled.double().mean()), float((styled & unseen).double().mean()))


def classes(samples: Tensor) -> Tensor:
    """The digit network's class of each image, [N]."""
    extractor = load_extractor("digits", device="cpu")
    network = extractor.network  # type: ignore[attr-defined]
    labels: Tensor = network(to_model_range(samples)).argmax(1)
    return labels


@cache
@torch.enable_grad()
def style_network() -> DigitNetwork:
    """Trained on the even images of both domains: output 0 for the source's style, 1 for the target's."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = DigitNetwork()
    images, styles = domains(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH_IMAGES):
            seen = images[batch]
            other = seen[torch.randperm(len(seen), generator=generator)]
            mixed = torch.where(torch.rand(seen.shape, generator=generator) < FLIPPED_SHARE, other, seen)
            loss = cross_entropy(network(mixed)[:, :2], styles[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval().requires_grad_(False)


def domains(half: int) -> tuple[Tensor, Tensor]:
    """Every other image of source and target in [-1, 1], from `half` (0 or 1) on, and its style [N], 0 or 1."""
    parts = [to_model_range(digits(name).images[half::2]) for name in ("source", "target")]
    return torch.cat(parts), torch.cat([torch.full((len(part),), style) for style, part in enumerate(parts)])


def accuracy() -> float:
    """Share of the odd images, which the network hasn't seen, whose style it names."""
    images, styles = domains(1)
    with torch.no_grad():
        return float((style_network()(images)[:, :2].argmax(1) == styles).double().mean())
