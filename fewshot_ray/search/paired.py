"""Differences paired by seed: mean, 95 % t-interval and conclusion. Imports nothing heavy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

Verdict: TypeAlias = Literal[
    "better", "worse", "no difference shown", "no verdict: fewer than three seeds", "no verdict: the same difference on every seed"
]

FEWEST_SEEDS = 3
"""The least number of seeds that a conclusion is drawn from."""

ROUNDING = 1e-9
"""Width, relative to the mean, below which an interval counts as zero: floats equal on paper (9 - 8 and .9 - .8) differ by less."""


class Interval(NamedTuple):
    """Confidence interval of the mean `difference` over `seeds` seeds; infinite for a single one."""

    difference: float
    low: float
    high: float
    seeds: int

    def verdict(self, direction: Literal["min", "max"]) -> Verdict:
        """The conclusion from the interval, where `direction` is better.

        Fewer than three seeds have none. An interval of zero width has none either: a few seeds that agree (counts, shares of a few images)
        don't estimate the variation between seeds.
        """
        if self.seeds < FEWEST_SEEDS:
            return "no verdict: fewer than three seeds"
        if self.low <= 0 <= self.high:
            return "no difference shown"
        if self.high - self.low <= ROUNDING * abs(self.difference):
            return "no verdict: the same difference on every seed"
        return "better" if (self.high < 0) == (direction == "min") else "worse"


def paired_interval(differences: Sequence[float]) -> Interval:
    """d -+ t_{.975, n-1} s / sqrt(n), with d the mean and s the differences' standard deviation (ddof 1)."""
    from scipy.special import stdtrit  # imported here, since it takes longer than the rest of the leaderboard

    n, d = len(differences), statistics.fmean(differences)
    half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return Interval(d, d - half, d + half, n)
