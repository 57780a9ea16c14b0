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


def merit(metrics: Mapping[str, float], search: SearchSpec) -> tuple[float, float]:
    """What evaluations and trials are ordered by, the smaller the better: the constraints' excess, then the first objective."""
    name, direction = next(iter(search.objectives.items()))
    value = metrics.get(name, math.nan)
    excess = math.fsum(max(0.0, excess) for excess in violations(metrics, search).values())
    return excess, math.inf if math.isnan(value) else value if direction == "min" else -value


def best_index(evaluations: Sequence[Mapping[str, float]], search: SearchSpec) -> int | None:
    """The best by the first objective among those within the constraints, the earliest of equals.

    Where none is within them, the one least past them. One with an objective that isn't finite doesn't count; None where none does.
    """
    measured = [
        index
        for index, metrics in enumerate(evaluations)
        if all(math.isfinite(metrics.get(objective, math.nan)) for objective in search.objectives)
    ]
    return min(measured, key=lambda index: (*merit(evaluations[index], search), index)) if measured else None
