"""Alignment of two models' samples from the same noise."""

import math

import pytest
import torch
from torch import Tensor

from fewshot_ray.metrics import PerceptualDistance
from fewshot_ray.metrics.alignment import alignment, alignment_lpips


def test_alignment_by_hand() -> None:
    """Oracle: chords on the unit circle: equal directions of any length 0, right angles the root of 2, opposite ones 2."""
    source = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    adapted = torch.tensor([[5.0, 0.0], [2.0, 0.0], [-2.0, -2.0]])
    assert alignment(source, adapted) == pytest.approx((0 + math.sqrt(2) + 2) / 3)
    assert alignment(source, source) == 0


def test_alignment_is_between_the_samples_of_one_noise() -> None:
    """Oracle: the same images in another order are no longer aligned."""
    features = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    assert alignment(features, features.roll(1, 0)) > 0.5


@pytest.mark.parametrize("rows", [(3, 2), (0, 0)])
def test_sets_that_are_not_pairs_are_refused(rows: tuple[int, int]) -> None:
    """Oracle: the message names both shapes."""
    with pytest.raises(ValueError, match="a pair a noise"):
        alignment(torch.ones(rows[0], 4), torch.ones(rows[1], 4))


class Pixels(PerceptualDistance):
    """Mean square over pixels, in place of a network."""

    def __init__(self) -> None:
        super().__init__(None, "", torch.device("cpu"))

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.float() - b.float()).square().flatten(1).mean(1)


def test_alignment_lpips_is_the_mean_over_pairs() -> None:
    """Oracle: by hand."""
    source = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    adapted = torch.stack([torch.full((1, 2, 2), 3, dtype=torch.uint8), torch.full((1, 2, 2), 1, dtype=torch.uint8)])
    assert alignment_lpips(source, adapted, Pixels()) == pytest.approx((9 + 1) / 2)
