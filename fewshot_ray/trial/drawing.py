"""Draws images of a generator from noise that depends on a seed and an image's number alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.trial.candidate import Candidate

DRAWN_AT_ONCE = 256


def sampling_noise(candidate: Candidate, seed: int, number: int) -> Tensor:
    """Standard normal noise of one image, `[*noise_shape]`, on the CPU."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "samples", number))
    return torch.randn(candidate.noise_shape, generator=generator)


def draw(candidate: Candidate, count: int, config: EvaluateSpec, seed: int, said: Callable[[str], None] = lambda text: None) -> Tensor:
    """The first `count` images, uint8 `[count, C, H, W]` on the CPU; `said` is told how many there are."""
    drawn: list[Tensor] = []
    for first in range(0, count, DRAWN_AT_ONCE):
        numbers = range(first, min(first + DRAWN_AT_ONCE, count))
        said(f"drawing images: {first} of {count}")
        noise = torch.stack([sampling_noise(candidate, seed, number) for number in numbers])
        drawn.append(candidate.images(noise.to(candidate.device), numbers, config).cpu())
    return torch.cat(drawn)
