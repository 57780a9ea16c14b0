"""Which evaluation is a trial's value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fewshot_ray.spec.sections import SearchSpec, parse_constraint


def violations(metrics: Mapping[str, float], search: SearchSpec) -> dict[str, float]:
    """How far each constrained metric is past its bound; at most 0 where the bound is kept, infinite where it is not a number."""
    result = {}
    for name, text in search.constraints.items():
        operator, bound = parse_constraint(text)
        value = metrics.get(name, math.nan)
        excess = value - bound if operator == "<=" else bound - value
        result[name] = math.inf if math.isnan(excess) else excess
    return result


def best_index(evaluations: Sequence[Mapping[str, float]], search: SearchSpec) -> int | None:
    """The best by the first objective among those within the constraints, the earliest of equals.

    Where none is within them, the one least past them. One with an objective that isn't finite doesn't count; None where none does.
    """
    name, direction = next(iter(search.objectives.items()))
    sign = 1.0 if direction == "min" else -1.0

    def order(index: int) -> tuple[float, float, int]:
        metrics = evaluations[index]
        excess = math.fsum(max(0.0, excess) for excess in violations(metrics, search).values())
        return excess, sign * metrics[name], index

    measured = [
        index
        for index, metrics in enumerate(evaluations)
        if all(math.isfinite(metrics.get(objective, math.nan)) for objective in search.objectives)
    ]
    return min(measured, key=order) if measured else None
