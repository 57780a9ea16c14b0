"""What evaluations and trials are ordered by: those within the constraints before those past them, then by the objectives."""

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
"""The excess over the constraints, then the objectives, each turned so that less is better; all infinite where one isn't finite."""


@dataclass(frozen=True)
class Ranking:
    """The one order of a sweep's evaluations: of a trial's own, of trials at a rung, of the kept checkpoints and of the leaderboard."""

    objectives: Objectives
    bounds: Bounds = field(default_factory=dict)

    @classmethod
    def of(cls, search: SearchSpec) -> Ranking:
        """By the file's objectives and constraints."""
        return cls(search.objectives, {name: parse_constraint(text) for name, text in search.constraints.items()})

    def violations(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """How far each constrained metric is past its bound; at most 0 where the bound is kept, infinite where it is not a number."""
        result = {}
        for name, (operator, bound) in self.bounds.items():
            value = metrics.get(name, math.nan)
            excess = value - bound if operator == "<=" else bound - value
            result[name] = math.inf if math.isnan(excess) else excess
        return result

    def excess(self, metrics: Mapping[str, float]) -> float:
        """The sum of what the constraints are exceeded by; 0 for what keeps them all."""
        return math.fsum(max(0.0, excess) for excess in self.violations(metrics).values())

    def merit(self, metrics: Mapping[str, float]) -> Merit:
        """What is compared; less is better, place by place."""
        values = [(metrics.get(name, math.nan), direction) for name, direction in self.objectives.items()]
        if not all(math.isfinite(value) for value, _ in values):
            return (math.inf,) * (1 + len(values))
        return self.excess(metrics), *(value if direction == "min" else -value for value, direction in values)

    def best_index(self, evaluations: Sequence[Mapping[str, float]]) -> int | None:
        """The best by the first objective among those within the constraints, the earliest of equals.

        Where none is within them, the one least past them. One with an objective that isn't finite doesn't count; None where none does.
        """
        merits = [self.merit(metrics) for metrics in evaluations]
        measured = [index for index, merit in enumerate(merits) if math.isfinite(merit[1])]
        return min(measured, key=lambda index: (merits[index][:2], index)) if measured else None


def fronts(merits: Sequence[Merit]) -> list[int]:
    """Each one's front: 0 for those that none dominates, 1 for those that only front 0 does, and so on.

    Less excess dominates whatever the objectives are (Deb's constrained domination); of equal excess, what is nowhere worse and somewhere
    better. So front 0 is the Pareto front of those that keep the constraints, where there are any.
    """
    found = [0] * len(merits)
    better: list[int] = []
    for index in sorted(range(len(merits)), key=lambda index: merits[index]):  # what dominates another stands before it
        found[index] = max((found[other] + 1 for other in better if _dominates(merits[other], merits[index])), default=0)
        better.append(index)
    return found


def ranked(merits: Sequence[Merit]) -> list[int]:
    """Positions in `merits`, the best first: by front, within a front by the first objective, then the others; the earlier of equals."""
    front = fronts(merits)
    return sorted(range(len(merits)), key=lambda index: (front[index], merits[index], index))


def _dominates(one: Merit, other: Merit) -> bool:
    if one[0] != other[0]:
        return one[0] < other[0]
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
