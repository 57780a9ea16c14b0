"""Paired differences with their 95 % t-interval, and what may be said of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import t as student

NONE_SHOWN = "no difference shown"


def paired(differences: Sequence[float]) -> dict[str, float]:
    """Mean and 95 % t-interval; infinite for a single difference."""
    n, mean = len(differences), statistics.fmean(differences)
    half = float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n) if n > 1 else math.inf
    return {"difference": mean, "low": mean - half, "high": mean + half}


def verdict(interval: Mapping[str, float], direction: str) -> str:
    """In the metric's direction ("min" or "max" is better): better, worse, or no difference shown."""
    if interval["low"] <= 0 <= interval["high"]:
        return NONE_SHOWN
    return "better" if (interval["high"] < 0) == (direction == "min") else "worse"
