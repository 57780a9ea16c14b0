"""Which numbers of images make a metric's value meaningless, and which metric isn't."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fewshot_ray.metrics.extractors.inception import SPATIAL
from fewshot_ray.metrics.suite import METRICS

FEWEST_REALS = 100
FEWEST_SAMPLES_A_SHOT = 5
FEWEST_SCORED = 5_000
COVARIANCES = frozenset({"fd", "sfid", "fd_dinov2", "mifid"})
NEIGHBOURHOODS = frozenset({"precision", "recall", "density", "coverage"})
CLUSTERS = frozenset({"intra_distance", "intra_lpips", "modes", "modes_lpips"})
SCORES = frozenset({"inception_score"})


@dataclass(frozen=True)
class Counts:
    """Numbers of images of an evaluation, and of the features of its networks."""

    generated: int
    real: int
    train: int
    dimensions: Mapping[str, int] = field(default_factory=dict)
    """By what needs them: "features" the extractor's, and those of `suite.NETWORKS`."""

    def dimension(self, metric: str) -> int | None:
        """Of the features that a metric is computed from; None where that isn't known."""
        return SPATIAL if metric == "sfid" else self.dimensions.get(METRICS[metric].needs)


def remarks(metrics: Iterable[str], counts: Counts) -> Iterator[str]:
    """A line each on metrics that these numbers of images make meaningless: why, and which other one isn't."""
    asked = list(metrics)
    for name in asked:
        if name in COVARIANCES and (why := _covariance(name, counts)):
            yield f"{name}: {why}"
    for names, remark in ((NEIGHBOURHOODS, _neighbourhood), (CLUSTERS, _clusters), (SCORES, _score)):
        given = [name for name in asked if name in names]
        if given and (why := remark(counts)):
            yield f"{', '.join(given)}: {why}"


def is_meaningful(metric: str, counts: Counts) -> bool:
    """Whether there is no remark on the metric."""
    return not list(remarks([metric], counts))


def _covariance(metric: str, counts: Counts) -> str:
    dimension = counts.dimension(metric)
    few, kind = min((counts.real, "held-out"), (counts.generated, "generated"))
    if dimension is None or few > dimension:
        return ""
    return (
        f"{few} {kind} images give no covariance of {dimension} features: the value depends on their number and rewards copies; "
        "kid doesn't depend on their number"
    )


def _neighbourhood(counts: Counts) -> str:
    # With ten reals nearly every generated image is within some real image's ball: on the digits coverage is 1 for every model.
    if counts.real >= FEWEST_REALS:
        return ""
    return (
        f"the balls around {counts.real} held-out images cover nearly everything, whatever the model; "
        f"kid and pairwise_distance mean something with so few ({FEWEST_REALS} or more held-out images would be right)"
    )


def _clusters(counts: Counts) -> str:
    least = FEWEST_SAMPLES_A_SHOT * counts.train
    if counts.generated >= least:
        return ""
    return (
        f"{counts.generated} generated images are too few around {counts.train} training images; pairwise_distance means something "
        f"({least} or more generated images would be right)"
    )


def _score(counts: Counts) -> str:
    if counts.generated >= FEWEST_SCORED:
        return ""
    return f"grows with the number of images up to {FEWEST_SCORED} and more, and {counts.generated} are generated; kid means something"
