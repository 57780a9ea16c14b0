"""Converts ranges, their values and objectives to Optuna's, and maps numbers of [0, 1) to values."""

from __future__ import annotations

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from fewshot_ray.spec.ranges import Choice, IntRange, Range
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.space import Space

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


def values_of(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """A trial's values by path, from its parameters. Raises KeyError for a parameter that the space lacks."""
    return {space.by_name[name].path: from_optuna(space.by_name[name].range, stored) for name, stored in trial.params.items()}


def at_quantile(range_: Range, share: float) -> Any:
    """The value below which a `share` of [0, 1) of the range lies; for a log range of its logarithm."""
    if isinstance(range_, Choice):
        return range_.values[int(share * len(range_.values))]
    if isinstance(range_, IntRange):
        return range_.low + int(share * (range_.high - range_.low + 1))
    low, high = (math.log(range_.low), math.log(range_.high)) if range_.log else (range_.low, range_.high)
    value = low + share * (high - low)
    return min(max(math.exp(value) if range_.log else value, range_.low), range_.high)


def directions(search: SearchSpec) -> list[StudyDirection]:
    """Optuna's directions of the objectives."""
    minimise = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    return [minimise[direction] for direction in search.objectives.values()]
