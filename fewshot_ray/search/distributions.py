"""Converts ranges, their values and objectives to Optuna's, and draws values at random."""

from __future__ import annotations

import math
import random
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection

from fewshot_ray.spec.ranges import Choice, IntRange, Range
from fewshot_ray.spec.sections import SearchSpec

CHOICE_INDEX = "index"


def distribution(range_: Range) -> BaseDistribution:
    """Optuna's distribution for a range.

    Where Optuna can't store a choice's values, or can't distinguish them (1 and true), its choices are their indices.
    """
    if isinstance(range_, Choice):
        plain = all(value is None or isinstance(value, bool | int | float | str) for value in range_.values)
        plain = plain and len(set(range_.values)) == len(range_.values)
        return CategoricalDistribution(range_.values if plain else [f"{CHOICE_INDEX} {i}" for i in range(len(range_.values))])
    if isinstance(range_, IntRange):
        return IntDistribution(range_.low, range_.high)
    return FloatDistribution(range_.low, range_.high, log=range_.log)


def to_optuna(range_: Range, value: Any) -> Any:
    """A value of the range as Optuna stores it."""
    choices = getattr(distribution(range_), "choices", None)
    if isinstance(range_, Choice) and choices != range_.values:
        return f"{CHOICE_INDEX} {range_.index(value)}"
    return value


def from_optuna(range_: Range, stored: Any) -> Any:
    """The inverse of `to_optuna`."""
    choices = getattr(distribution(range_), "choices", None)
    if isinstance(range_, Choice) and choices != range_.values:
        return range_.values[int(str(stored).removeprefix(CHOICE_INDEX))]
    return stored


def drawn_from(range_: Range, draw: random.Random) -> Any:
    """A uniformly drawn value of the range; for a log range uniform in the logarithm."""
    if isinstance(range_, Choice):
        return draw.choice(range_.values)
    if isinstance(range_, IntRange):
        return draw.randint(range_.low, range_.high)
    if not range_.log:
        return draw.uniform(range_.low, range_.high)
    return min(max(math.exp(draw.uniform(math.log(range_.low), math.log(range_.high))), range_.low), range_.high)


def directions(search: SearchSpec) -> list[StudyDirection]:
    """Optuna's directions of the objectives."""
    minimise = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    return [minimise[direction] for direction in search.objectives.values()]
