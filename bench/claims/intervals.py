"""Paired differences with their 95 % t-interval, and what may be said of them: the product's own rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fewshot_ray.search.paired import paired_interval


def paired(differences: Sequence[float], direction: Literal["min", "max"]) -> dict[str, Any]:
    """Mean, 95 % t-interval (infinite for a single difference) and verdict, where `direction` is better."""
    interval = paired_interval(differences)
    return {"difference": interval.difference, "low": interval.low, "high": interval.high, "verdict": interval.verdict(direction)}
