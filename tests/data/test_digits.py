"""The embedded benchmark: its making, its split, its sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from bench.data import make_digits
from fewshot_ray.data.digits import digit_indices, digits
from fewshot_ray.errors import UserError


def test_the_archive_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    """Oracle: scikit-learn's digits, through bench/data/make_digits.py. (Another zlib may pack them otherwise: then the arrays decide.)"""
    make_digits.main(tmp_path / "digits.npz")
    rebuilt, embedded = (tmp_path / "digits.npz").read_bytes(), make_digits.EMBEDDED.read_bytes()
    assert len(embedded) < 100_000
    if rebuilt != embedded:
        with np.load(make_digits.EMBEDDED) as stored:
            for name, array in make_digits.make_arrays().items():
                assert np.array_equal(stored[name], array)


def test_source_is_scikit_learns_digits() -> None:
    """Oracle: scikit-learn's array, 16 grey levels scaled to 255."""
    expected = np.round(load_digits().images[:1000] / 16 * 255)
    assert np.abs(digits("source").images[:, 0].numpy() - expected).max() <= 0.5
    assert digits("source").labels.tolist() == load_digits().target[:1000].tolist()


def test_target_is_bolder_and_slanted() -> None:
    """Oracle: image moments in NumPy. A shear by s turns the slope cov(x, y) / var(y) into slope - s (y points down)."""
    plain = load_digits().images[1000:] / 16
    target = digits("target").images[:, 0].numpy() / 255

    def slope(images: np.ndarray) -> float:
        y, x = np.mgrid[:8, :8]
        weight = images.sum(0) / images.sum()
        centre_y, centre_x = (weight * y).sum(), (weight * x).sum()
        return float((weight * (y - centre_y) * (x - centre_x)).sum() / (weight * (y - centre_y) ** 2).sum())

    assert target.mean() > 1.2 * plain.mean()
    assert slope(target) == pytest.approx(slope(plain) - 0.4, abs=0.1)


def test_restyle_by_hand() -> None:
    """Oracle: one bright pixel worked out by hand: a block of 8x8 dilated by 0 is itself again; by 1 it gains four sides of 8."""
    image = np.zeros((1, 8, 8))
    image[0, 4, 4] = 1
    assert np.array_equal(make_digits.restyle(image, 0.0, 0), image)
    thick = make_digits.restyle(image, 0.0, 1)
    assert thick[0, 3, 4] == thick[0, 4, 3] == thick[0, 5, 4] == thick[0, 4, 5] == 8 / 64
    assert thick.sum() == 1 + 4 * 8 / 64


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_split_is_disjoint_and_complete(seed: int) -> None:
    parts = {name: digit_indices(name, seed) for name in ("shots", "validation", "test")}
    assert {name: len(indices) for name, indices in parts.items()} == {"shots": 10, "validation": 200, "test": 587}
    assert sorted(parts["shots"] + parts["validation"] + parts["test"]) == list(range(797))
    assert digits("shots", seed).labels.tolist() == list(range(10))
    assert digits("shots", seed).images.shape == (10, 1, 8, 8)
    assert digits("shots", seed).images.dtype == torch.uint8


def test_the_split_is_the_seeds_and_stays() -> None:
    """Golden numbers: published figures rest on this split."""
    assert digit_indices("shots", 0) == GOLDEN_SHOTS
    assert digit_indices("shots", 1) != GOLDEN_SHOTS
    assert digits("source", 0).images.equal(digits("source", 1).images)


def test_an_unknown_part_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean shots"):
        digits("shot")


GOLDEN_SHOTS = [235, 158, 669, 428, 311, 692, 683, 710, 685, 772]


@pytest.mark.parametrize("seed", [0, 7])
def test_biased_shots_lack_half_of_the_classes_that_the_test_images_have(seed: int) -> None:
    """Oracle: the part's definition, two of each class 0 to 4, over the ordinary split of the same seed."""
    parts = {part: set(digit_indices(part, seed)) for part in ("validation", "test", "biased-shots", "biased-validation", "biased-test")}
    assert digits("biased-shots", seed).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert set(digits("biased-validation", seed).labels.tolist()) == set(range(5))
    assert set(digits("biased-test", seed).labels.tolist()) == set(range(10))
    assert parts["biased-validation"] < parts["validation"]
    assert parts["biased-test"] <= parts["test"]
    assert not parts["biased-shots"] & (parts["biased-validation"] | parts["biased-test"])
    assert len(parts["test"] - parts["biased-test"]) <= 5
