"""Which numbers of images make a metric meaningless, and what is said of it."""

from __future__ import annotations

import pytest

from fewshot_ray.metrics import METRICS
from fewshot_ray.metrics.limits import CLUSTERS, COVARIANCES, NEIGHBOURHOODS, SCORES, Counts, is_meaningful, remarks

FEATURES = {"features": 2_048, "dinov2": 1_024}
MANY = Counts(generated=5_000, real=5_000, train=10, dimensions=FEATURES)
FEW = Counts(generated=40, real=10, train=10, dimensions=FEATURES)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_named_in_its_place_is_meaningful(metric: str) -> None:
    """Oracle: the registry: one line for few images, which names another metric that has none; none for many."""
    assert is_meaningful(metric, MANY)
    for line in remarks([metric], FEW):
        assert "\n" not in line
        others = [name for name in METRICS if name in line.replace(",", "").split() and name != metric]
        assert others
        assert all(is_meaningful(name, FEW) for name in others)
    assert is_meaningful(metric, FEW) == (metric not in COVARIANCES | NEIGHBOURHOODS | CLUSTERS | SCORES)


def test_metrics_of_one_kind_share_a_line() -> None:
    lines = list(remarks(["kid", "coverage", "fd", "recall"], FEW))
    assert [line.split(":")[0] for line in lines] == ["fd", "coverage, recall"]
    assert "10 held-out images give no covariance of 2048 features" in lines[0]


def test_the_smaller_set_counts_for_the_covariance() -> None:
    """Oracle: as many images as features have a singular covariance, one more hasn't."""
    assert not is_meaningful("fd", Counts(generated=64, real=200, train=10, dimensions={"features": 64}))
    assert is_meaningful("fd", Counts(generated=65, real=65, train=10, dimensions={"features": 64}))
