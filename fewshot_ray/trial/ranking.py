"""The order of evaluations and trials: those that keep the constraints first, then by front and objectives.

Everything that asks which of several is better asks here: the best evaluation of a trial, stopping, the checkpoints that are kept, the
leaderboard, the winner, and the line that shows a sweep's progress.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal, TypeAlias

from fewshot_ray.spec.sections import SearchSpec, parse_constraint

Objectives: TypeAlias = Mapping[str, Literal["min", "max"]]
"""Metric -> direction; the first one breaks ties and orders within a Pareto front."""
Bounds: TypeAlias = Mapping[str, tuple[str, float]]
"""Metric -> (`<=` or `>=`, bound)."""
Merit: TypeAlias = tuple[float, ...]
"""The sum of constraint violations, then the objectives with those to maximise negated; less is better.

All are infinite where an objective isn't finite."""


@dataclass(frozen=True)
class Standing:
    """Where an evaluation stands among others."""

    excess: float
    """The sum of its constraint violations; 0 where it keeps all. Infinite where an objective isn't finite, or a bound metric is NaN."""
    front: int
    """0 where no other one dominates it, 1 where only those of front 0 do, and so on."""
    place: int
    """0 for the best, without ties: by front, then by the objectives in their order, then the earlier."""
    measured: bool
    """Whether its objectives are finite."""


@dataclass(frozen=True)
class Ranking:
    """The order of a sweep's evaluations."""

    objectives: Objectives
    bounds: Bounds = field(default_factory=dict)

    @classmethod
    def of(cls, search: SearchSpec) -> Ranking:
        """The ranking by the file's objectives and constraints."""
        return cls(search.objectives, {name: parse_constraint(text) for name, text in search.constraints.items()})

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Violation of each constraint: the distance past the bound, at most 0 where it is kept, infinite for NaN or a missing metric."""
        result = {}
        for name, (operator, bound) in self.bounds.items():
            value = metrics.get(name, math.nan)
            excess = value - bound if operator == "<=" else bound - value
            result[name] = math.inf if math.isnan(excess) else excess
        return result

    def excess(self, metrics: Mapping[str, float]) -> float:
        """The sum of constraint violations; 0 where all constraints are kept."""
        return math.fsum(max(0.0, excess) for excess in self.violations(metrics).values())

    def standings(self, evaluations: Sequence[Mapping[str, float]]) -> list[Standing]:
        """The standing of each evaluation among all of them.

        The smaller violation dominates, whatever the objectives are (Deb's constrained domination); at equal violation, the one that is
        nowhere worse and somewhere better. So front 0 is the Pareto front of the feasible ones, where there are any.
        """
        merits = [self.merit(metrics) for metrics in evaluations]
        fronts = _fronts(merits)
        order = sorted(range(len(merits)), key=lambda index: (fronts[index], merits[index], index))
        places = {index: place for place, index in enumerate(order)}
        return [Standing(merit[0], fronts[index], places[index], math.isfinite(merit[1])) for index, merit in enumerate(merits)]

    def front(self, evaluations: Sequence[Mapping[str, float]]) -> list[int]:
        """Indices of the evaluations of front 0 with finite objectives; of equal ones the first."""
        first: dict[Merit, int] = {}
        for index, standing in enumerate(self.standings(evaluations)):
            if standing.front == 0 and standing.measured:
                first.setdefault(self.merit(evaluations[index]), index)
        return list(first.values())

    def best_index(self, evaluations: Sequence[Mapping[str, float]]) -> int | None:
        """Index of the evaluation in the first place; None where none has finite objectives.

        Among feasible ones that is the best by the first objective; where none is feasible, the one of the smallest violation.
        """
        found = enumerate(self.standings(evaluations))
        return next((index for index, standing in found if standing.place == 0 and standing.measured), None)

    def is_better(self, metrics: Mapping[str, float], than: Mapping[str, float] | None) -> bool:
        """Whether an evaluation with finite objectives comes before an earlier one, or there is no earlier one."""
        return self.best_index([metrics] if than is None else [than, metrics]) == (0 if than is None else 1)

    def merit(self, metrics: Mapping[str, float]) -> Merit:
        """The tuple that evaluations are compared by, element by element; less is better."""
        values = [(metrics.get(name, math.nan), direction) for name, direction in self.objectives.items()]
        if not all(math.isfinite(value) for value, _ in values):
            return (math.inf,) * (1 + len(values))
        return self.excess(metrics), *(value if direction == "min" else -value for value, direction in values)


def _fronts(merits: Sequence[Merit]) -> list[int]:
    """The number of the front of each, by efficient non-dominated sorting (Zhang et al. 2015): O(n log n) for one or two objectives."""
    found = [0] * len(merits)
    order = sorted(range(len(merits)), key=lambda index: merits[index])  # one that dominates another is before it
    first = 0
    for _, group in groupby(order, key=lambda index: merits[index][0]):
        fronts: list[list[Merit]] = []
        for index in group:
            number = bisect_left(range(len(fronts)), True, key=lambda one: not _dominated(merits[index], fronts[one]))
            if number == len(fronts):
                fronts.append([])
            fronts[number].append(merits[index])
            found[index] = first + number
        first += len(fronts)
    return found


def _dominated(merit: Merit, front: Sequence[Merit]) -> bool:
    """Whether any of a front, whose merits are in their order and before `merit`, dominates it."""
    # The second objective of a front's merits falls along their order, so the last one's is the smallest.
    among = front[-1:] if len(merit) <= 3 else front
    return any(one != merit and all(a <= b for a, b in zip(one, merit, strict=True)) for one in among)
