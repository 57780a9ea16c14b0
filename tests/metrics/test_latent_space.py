import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.metrics.latent_space import modes, path_uniformity


def squares(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).flatten(1).square().sum(1)


def linear(codes: Tensor) -> Tensor:
    return codes[:, :, None, None]


def stairs(codes: Tensor) -> Tensor:
    """Two images in all: which one, the first coordinate says."""
    return (codes[:, :1, None, None] > 0.5).to(codes.dtype)


def test_a_linear_generator_is_even() -> None:
    """Oracle: by hand: each of ten steps of a path of length d is d / 10 long, its square over .01 is d^2; end to end 100 d^2."""
    starts, ends = torch.zeros(3, 2), torch.tensor([[1.0, 0], [0, 2], [3, 4]])
    found = path_uniformity(starts, ends, linear, squares)
    assert found.mean == pytest.approx((1 + 4 + 25) / 3, rel=1e-5)
    assert found.std == pytest.approx(0, abs=1e-4)
    assert found.end == pytest.approx(100 * (1 + 4 + 25) / 3, rel=1e-5)


def test_stairs_show_in_the_deviation() -> None:
    """Oracle: NumPy: one of ten steps has the whole distance, 1 / .01, the others none: std (ddof 1) of [100, 0, ..., 0]."""
    found = path_uniformity(torch.zeros(20, 1), torch.ones(20, 1), stairs, squares)
    assert found.mean == pytest.approx(10)
    assert found.std == pytest.approx(np.std([100.0] + [0.0] * 9, ddof=1))
    assert found.end == pytest.approx(100)


def test_without_paths_it_is_refused() -> None:
    """Oracle: the stated rule."""
    with pytest.raises(ValueError, match="0 paths of 10 intervals"):
        path_uniformity(torch.zeros(0, 1), torch.zeros(0, 1), linear, squares)


def test_modes_are_distinct_nearest_training_images() -> None:
    """Oracle: by hand; farthest ones, which the authors' script counts, would be three."""
    distances = torch.tensor([[0.1, 0.5, 0.9], [0.2, 0.2, 0.8], [0.3, 0.1, 0.4], [0.0, 9.0, 1.0]])
    assert modes(distances) == 2
    assert modes(distances[:1]) == 1
