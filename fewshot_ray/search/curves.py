"""Tests on the curves of trials: whether one has turned, and whether it is behind another one.

The unit is the held-out image. Each is measured with the same noise at every evaluation and in every trial, so two evaluations differ by
image, and a paired t-test says whether their mean difference is above 0. A metric of samples has no value by image: there the standard
deviation of an evaluation's noise is estimated from the curves.
"""

from __future__ import annotations

import math
import statistics
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

FEWEST_IMAGES = 5
"""Fewest held-out images that a test by image rests on."""
NORMAL_MEDIAN = 0.6745
"""The median magnitude of a standard normal variable."""
FEWEST_RESIDUALS = 8
"""Fewest evaluations with two neighbours that the noise of a metric is estimated from."""
SLOWING, STARTING = 0.4, 5.0
"""How fast a curve that slows down, and another one, is taken to go on falling, relative to its latest interval, in the logarithm of the
steps; chosen by hand on splits 0 and 1 of the recorded digits (bench/search), by the held-out loss and KID."""


@dataclass(frozen=True)
class Point:
    """An objective at one evaluation of a trial."""

    step: int
    value: float
    """The objective, negated where it is to be maximised: less is better."""
    images: Sequence[float] = ()
    """The value of each held-out image, whose mean is `value`; empty for an objective that has none."""
    kept: bool = True
    """Whether the evaluation keeps the constraints."""


def is_worse(one: Point, other: Point, level: float, noise: float | None, *, by: float = 0.0) -> bool:
    """Whether `one` is worse than `other` by more than `by`: by a one-sided test at `level` by image, or else by an evaluation's noise.

    What isn't finite is worse than what is. False where neither is known: fewer than FEWEST_IMAGES, and no `noise`.
    """
    if not math.isfinite(one.value):
        return math.isfinite(other.value)
    if not one.value - other.value > by:
        return False
    if len(one.images) == len(other.images) >= FEWEST_IMAGES:
        differences = [a - b - by for a, b in zip(one.images, other.images, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        return _p_value(statistics.fmean(differences), error, len(differences) - 1) <= level
    return noise is not None and _p_value(one.value - other.value - by, noise * math.sqrt(2), math.inf) <= level


def _p_value(mean: float, error: float, degrees: float) -> float:
    """The chance of a mean at least as large, in errors, where the true one is 0; by Student's distribution."""
    from scipy.special import stdtr  # imported here, as it takes longer than all else of the driver's decisions

    if error == 0:
        return 0.0 if mean > 0 else 1.0
    return float(stdtr(min(degrees, 1e9), -mean / error))


class Noise:
    """The standard deviation of the noise of an evaluation, from curves of equally spaced evaluations.

    An evaluation less the mean of its two neighbours has 3/2 of its variance where the curve is straight. Their median magnitude is taken,
    as a curve's bends hardly change it.
    """

    def __init__(self) -> None:
        self._apart: list[float] = []
        """In ascending order."""

    def add(self, curve: Sequence[Point]) -> None:
        """Take the latest evaluation of a curve."""
        if len(curve) >= 3:
            a, b, c = (point.value for point in curve[-3:])
            if math.isfinite(apart := abs(b - (a + c) / 2)):
                insort(self._apart, apart)

    def deviation(self) -> float | None:
        """The estimate; None from fewer than FEWEST_RESIDUALS evaluations."""
        if len(self._apart) < FEWEST_RESIDUALS:
            return None
        return self._apart[len(self._apart) // 2] / NORMAL_MEDIAN / math.sqrt(1.5)


def best_of(points: Iterable[Point]) -> Point | None:
    """The point of the smallest value among those that keep the constraints, of equal ones the first; None where none does."""
    return min((point for point in points if point.kept and math.isfinite(point.value)), key=lambda point: point.value, default=None)


def has_turned(curve: Sequence[Point], level: float, noise: float | None) -> bool:
    """Whether the last two evaluations of a curve are worse than the best one before them, the last by a test at `level`.

    The level is shared among those that the best one is chosen from. The noise of training is common to all images, so no test by image
    sees it: one evaluation alone doesn't decide.
    """
    earlier = curve[:-2]
    best = best_of(earlier)
    return best is not None and not curve[-2].value <= best.value and is_worse(curve[-1], best, level / len(earlier), noise)


def is_behind(curve: Sequence[Point], rival: Point, last_step: int, level: float, noise: float | None) -> bool:
    """Whether a trial would still be worse at its last step than a rival's best evaluation, by a test at `level`.

    The forecast: its best evaluation goes on falling at the rate of the latest interval in the logarithm of the steps, times SLOWING; times
    STARTING unless three evaluations say that it slows down, since what starts slowly falls late, and may be the best. After a single
    evaluation nothing is known. What the rival had at equally many steps isn't compared: early on large learning rates are ahead, and
    smaller ones catch up.
    """
    own, own_before = _best_value(curve), _best_value(curve[:-1])
    if own is None or own_before is None:
        return False
    before, now = curve[-2].step, curve[-1].step
    ahead = (SLOWING if _slows_down(curve) else STARTING) * math.log(last_step / now) / math.log(now / before)
    fallen = own_before.value - own.value
    if noise is not None and fallen > 0:  # of the evaluation twice, of the one before, and of the rival's
        noise *= math.sqrt(((1 + ahead) ** 2 + ahead**2 + 1) / 2)
    return is_worse(own, rival, level, noise, by=fallen * ahead)


def _slows_down(curve: Sequence[Point]) -> bool:
    """Whether a curve of three or more falls less steeply in its latest interval than in the one before, in the logarithm of the steps."""
    if len(curve) < 3:
        return False
    before, latest = ((a.value - b.value) / math.log(b.step / a.step) for a, b in pairwise(curve[-3:]))
    return not (latest > 0 and latest >= before)


def _best_value(points: Sequence[Point]) -> Point | None:
    """The best evaluation, whether it keeps the constraints or not."""
    return best_of(replace(point, kept=True) for point in points)
