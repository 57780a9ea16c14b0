"""95 % intervals: against SciPy, brute force, and the spread of values over fresh draws."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, t
from torch import Tensor

from fewshot_ray.data.digits import digits
from fewshot_ray.metrics import METRICS, Suite, load_extractor
from fewshot_ray.metrics.diversity import euclidean_distances, mean_pairwise_distance
from fewshot_ray.metrics.fidelity import frechet_distance
from fewshot_ray.metrics.intervals import by_groups, of_mean, of_pairwise_mean, wilson
from fewshot_ray.metrics.sample_intervals import INTERVALS, sample_intervals


def normals(count: int, seed: int, dimension: int = 4) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (37, 1000)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    """Oracle: SciPy; a share of 0 or 1 has an end at exactly that."""
    interval, expected = wilson(hits / count, count, "images"), binomtest(hits, count).proportion_ci(method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= interval.low <= hits / count <= interval.high <= 1


def test_the_mean_of_few_has_students_interval() -> None:
    """Oracle: SciPy's distribution and the textbook's formula on five numbers."""
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 5.0])
    interval = of_mean(values, "images")
    assert interval is not None
    half = t.ppf(0.975, 4) * float(values.std()) / math.sqrt(5)
    assert (interval.low, interval.high) == pytest.approx((4 - half, 4 + half))
    assert of_mean(values[:1], "images") is None


def test_the_jackknife_of_pairs_leaves_each_image_out() -> None:
    """Oracle: the mean over pairs computed anew without each image."""
    images = normals(9, seed=0)
    interval = of_pairwise_mean(euclidean_distances(images, images))
    assert interval is not None
    left_out = torch.tensor([mean_pairwise_distance(torch.cat([images[:i], images[i + 1 :]])) for i in range(9)], dtype=torch.float64)
    error = math.sqrt(8 / 9 * float((left_out - left_out.mean()).square().sum()))
    value = mean_pairwise_distance(images)
    assert (interval.low, interval.high) == pytest.approx((value - t.ppf(0.975, 8) * error, value + t.ppf(0.975, 8) * error))


def frechet_interval(x: Tensor, y: Tensor) -> tuple[float, float]:
    interval = by_groups(frechet_distance(x, y), lambda i, j: frechet_distance(x[i], y[j]), x, y)
    assert interval is not None
    return interval.low, interval.high


def test_the_jackknife_by_groups_is_as_wide_as_the_values_spread() -> None:
    """Oracle: the standard deviation of the Frechet distance over 60 fresh pairs of sets, to a factor of 1.5."""
    pairs = [(normals(200, seed=2 * i), normals(100, seed=2 * i + 1) + 0.5) for i in range(60)]
    spread = float(torch.tensor([frechet_distance(x, y) for x, y in pairs]).std())
    widths = [(high - low) / 2 / t.ppf(0.975, 9) for low, high in (frechet_interval(x, y) for x, y in pairs)]
    assert spread / 1.5 < sum(widths) / len(widths) < spread * 1.5


def test_groups_do_not_depend_on_the_order_of_images() -> None:
    """Oracle: the interval of the same images in another order."""
    x, y = normals(50, seed=0), normals(40, seed=1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    assert frechet_interval(x, y) == pytest.approx(frechet_interval(x[order], y.flip(0)), rel=1e-9)


def test_two_images_have_no_interval_by_groups() -> None:
    x, y = normals(2, seed=0), normals(40, seed=1)
    assert by_groups(1.0, lambda i, j: 0.0, x, y) is None
    assert of_pairwise_mean(torch.zeros(2, 2)) is None


@pytest.mark.parametrize("metric", [name for name in INTERVALS if METRICS[name].needs == "features"])
def test_every_interval_has_its_value_within(metric: str) -> None:
    """Oracle: the value itself; no interval is below what the metric can be."""
    suite = Suite(
        [metric],
        training=digits("shots").images,
        reference=digits("validation").images[:60],
        extractor=load_extractor("digits", device="cpu"),
    )
    samples = digits("test").images[:80]
    values = suite.compute(samples)
    interval = sample_intervals(values, suite, samples)[metric]
    assert interval.low < values[metric] < interval.high
    assert interval.low >= (-math.inf if metric == "kid" else 0)
