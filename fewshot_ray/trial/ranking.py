"""The order of evaluations and trials: feasible ones before those that violate constraints, then by the objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
class Ranking:
    """The order of a sweep's evaluations, used within a trial, at rungs, for kept checkpoints and for the leaderboard."""

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

    def merit(self, metrics: Mapping[str, float]) -> Merit:
        """The tuple that evaluations are compared by, element by element; less is better."""
        values = [(metrics.get(name, math.nan), direction) for name, direction in self.objectives.items()]
        if not all(math.isfinite(value) for value, _ in values):
            return (math.inf,) * (1 + len(values))
        return self.excess(metrics), *(value if direction == "min" else -value for value, direction in values)

    def best_index(self, evaluations: Sequence[Mapping[str, float]]) -> int | None:
        """Index of the feasible evaluation that is best by the first objective, the earliest of equals.

        Where none is feasible, that of the smallest violation. Evaluations with an objective that isn't finite don't count; None where
        none does.
        """
        merits = [self.merit(metrics) for metrics in evaluations]
        measured = [index for index, merit in enumerate(merits) if math.isfinite(merit[1])]
        return min(measured, key=lambda index: (merits[index][:2], index)) if measured else None


def fronts(merits: Sequence[Merit]) -> list[int]:
    """The number of the front of each: 0 for those that none dominates, 1 for those that only front 0 dominates, and so on.

    The smaller violation dominates, whatever the objectives are (Deb's constrained domination); at equal violation, the one that is
    nowhere worse and somewhere better. So front 0 is the Pareto front of the feasible ones, where there are any.
    """
    found = [0] * len(merits)
    better: list[int] = []
    for index in sorted(range(len(merits)), key=lambda index: merits[index]):  # one that dominates another is before it
        found[index] = max((found[other] + 1 for other in better if _dominates(merits[other], merits[index])), default=0)
        better.append(index)
    return found


def ranked(merits: Sequence[Merit]) -> list[int]:
    """Indices of `merits`, best first: by front, then by the objectives in their order, then the earlier."""
    front = fronts(merits)
    return sorted(range(len(merits)), key=lambda index: (front[index], merits[index], index))


def _dominates(one: Merit, other: Merit) -> bool:
    if one[0] != other[0]:
        return one[0] < other[0]
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
