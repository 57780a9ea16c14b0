"""The distance of samples from the source's of the same noise."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from fewshot_ray.trial.drift import drift


def images(seed: int, count: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_it_is_the_ratio_of_mean_distances() -> None:
    """Oracle: NumPy over pairs; 0 for the same images, and what isn't defined is None."""
    ours, theirs = images(0), images(1)
    a, b = ours.flatten(1).numpy().astype(float), theirs.flatten(1).numpy().astype(float)
    moved = np.mean([np.linalg.norm(x - y) for x, y in zip(a, b, strict=True)])
    apart = np.mean([np.linalg.norm(x - y) for x, y in combinations(b, 2)])
    assert drift(ours, theirs) == pytest.approx(moved / apart)
    assert drift(theirs, theirs) == 0
    assert drift(images(2, 70), images(3, 70)) == drift(images(2, 70)[:64], images(3, 70)[:64])
    assert drift(ours[:1], theirs[:1]) is None
    assert drift(ours, theirs[:1].expand(5, -1, -1, -1)) is None
