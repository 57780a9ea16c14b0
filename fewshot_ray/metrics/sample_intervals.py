"""Intervals of the suite's metrics: by metric, what varies and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from fewshot_ray.metrics.diversity import euclidean_distances
from fewshot_ray.metrics.intervals import Interval, by_groups, of_error, of_mean, of_pairwise_mean, wilson
from fewshot_ray.metrics.manifold import real_balls_around
from fewshot_ray.metrics.suite import METRICS, Suite
from fewshot_ray.metrics.values import FEATURE_VALUES, NEIGHBOURS

GENERATED, HELD_OUT = "generated images", "held-out images"


def sample_intervals(values: Mapping[str, float], suite: Suite, samples: Tensor) -> dict[str, Interval]:
    """Those of the metrics in `values` that have one, for the samples that were measured.

    There is none of counts (modes), of likelihoods, which would be fitted anew for each group, of the Inception score, and of LPIPS.
    """
    found = {name: INTERVALS[name](values, suite, samples) for name in suite.metrics if name in INTERVALS}
    return {name: interval for name, interval in found.items() if interval is not None}


def _by_groups(metric: str) -> Callable[[Mapping[str, float], Suite, Tensor], Interval | None]:
    """The jackknife by groups of generated images, and of held-out ones where the metric compares with them."""

    def interval(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
        sets = suite.sets(metric, samples)
        real = sets.reference if METRICS[metric].real_images else None

        def statistic(kept: Tensor, kept_real: Tensor) -> float:
            part = replace(sets, generated=sets.generated[kept], reference_of=lambda: sets.reference[kept_real])
            return FEATURE_VALUES[metric](part)[metric]

        return by_groups(values[metric], statistic, sets.generated, real)

    return interval


def _kid(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    if "kid_stderr" not in values:
        return None
    freedom = min(len(samples), suite.real_images) - 1
    return of_error(values["kid"], values["kid_stderr"], freedom, f"jackknife over {GENERATED} and {HELD_OUT}")


def _pairwise_distance(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    unit = suite.sets("pairwise_distance", samples).unit
    return of_pairwise_mean(euclidean_distances(unit, unit))


def _density(values: Mapping[str, float], suite: Suite, samples: Tensor) -> Interval | None:
    sets = suite.sets("density", samples)
    return of_mean(real_balls_around(sets.generated, sets.reference, k=NEIGHBOURS).double().sum(1) / NEIGHBOURS, GENERATED)


def _share(metric: str, of: str) -> Callable[[Mapping[str, float], Suite, Tensor], Interval | None]:
    """Wilson's interval of a metric that is the share of generated or of held-out images."""
    return lambda values, suite, samples: wilson(values[metric], len(samples) if of == GENERATED else suite.real_images, of)


INTERVALS: Mapping[str, Callable[[Mapping[str, float], Suite, Tensor], Interval | None]] = {
    **{name: _by_groups(name) for name in ("fd", "sfid", "fd_dinov2", "mifid", "cmmd", "vendi", "intra_distance")},
    "kid": _kid,
    "pairwise_distance": _pairwise_distance,
    "memorisation": _share("memorisation", GENERATED),
    "precision": _share("precision", GENERATED),
    "recall": _share("recall", HELD_OUT),
    "density": _density,
    "coverage": _share("coverage", HELD_OUT),
}
