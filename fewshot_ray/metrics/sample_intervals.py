"""Intervals of the suite's metrics: by metric, what varies and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from fewshot_ray.metrics.diversity import euclidean_distances, intra_cluster_diversity, unit_features
from fewshot_ray.metrics.fidelity import frechet_distance
from fewshot_ray.metrics.intervals import Interval, by_groups, of_error, of_mean, of_pairwise_mean, wilson
from fewshot_ray.metrics.manifold import real_balls_around
from fewshot_ray.metrics.suite import Suite
from fewshot_ray.metrics.values import NEIGHBOURS

GENERATED, HELD_OUT = "generated images", "held-out images"


def sample_intervals(values: Mapping[str, float], suite: Suite, samples: Tensor) -> dict[str, Interval]:
    """Those of the metrics in `values` that have one, for the samples that were measured.

    Of counts (modes) there is none.
    """
    found = {name: INTERVALS[name](values, suite, samples) for name in suite.metrics if name in INTERVALS}
    return {name: interval for name, interval in found.items() if interval is not None}


def _features(suite: Suite, samples: Tensor) -> Tensor:
    assert suite.extractor is not None
    return suite.extractor.features(samples)


def _fd(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    generated, real = _features(suite, samples), suite.frechet_features
    return by_groups(values["fd"], lambda x, y: frechet_distance(generated[x], real[y]), generated, real)


def _kid(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    if "kid_stderr" not in values:
        return None
    freedom = min(len(samples), suite.real_images) - 1
    return of_error(values["kid"], values["kid_stderr"], freedom, f"jackknife over {GENERATED} and {HELD_OUT}")


def _pairwise_distance(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    unit = unit_features(_features(suite, samples))
    return of_pairwise_mean(euclidean_distances(unit, unit))


def _intra_distance(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    unit, train = unit_features(_features(suite, samples)), unit_features(suite.training_features)
    to_train = euclidean_distances(unit, train)

    def statistic(kept: Tensor, _: Tensor) -> float:
        def pairwise(members: Tensor) -> Tensor:
            return euclidean_distances(unit[kept[members]], unit[kept[members]])

        return intra_cluster_diversity(to_train[kept], pairwise, cap=suite.conventions.intra_cap).value

    return by_groups(values["intra_distance"], statistic, unit, None)


def _density(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    balls = real_balls_around(_features(suite, samples), suite.reference_features, k=NEIGHBOURS)
    return of_mean(balls.double().sum(1) / NEIGHBOURS, GENERATED)


def _share(metric: str, of: str) -> Callable[[Mapping[str, float], Suite, Tensor], Interval | None]:
    """Wilson's interval of a metric that is the share of generated or of held-out images."""
    return lambda values, suite, samples: wilson(values[metric], len(samples) if of == GENERATED else suite.real_images, of)


INTERVALS: Mapping[str, Callable[[Mapping[str, float], Suite, Tensor], Interval | None]] = {
    "fd": _fd,
    "kid": _kid,
    "pairwise_distance": _pairwise_distance,
    "intra_distance": _intra_distance,
    "memorisation": _share("memorisation", GENERATED),
    "precision": _share("precision", GENERATED),
    "recall": _share("recall", HELD_OUT),
    "density": _density,
    "coverage": _share("coverage", HELD_OUT),
}
