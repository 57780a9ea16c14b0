"""Larger limits for a sweep that has begun: `--extend trials=48`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import value_at

LIMITS = {
    "trials": "search.trials",
    "hours": "search.budget.hours",
    "gpu_hours": "search.budget.gpu_hours",
    "cost": "search.budget.cost.at_most",
    "patience": "search.budget.patience",
}
"""Dotted path in a run's file of each limit that can be raised."""
WHOLE = ("trials", "patience")
"""Those that are whole numbers."""


def larger_limits(options: Iterable[str]) -> dict[str, float]:
    """The limits in options `NAME=N`. Raises UserError."""
    found = {}
    for option in options:
        name, _, text = option.partition("=")
        number = _number(text, whole=name in WHOLE)
        if name not in LIMITS or number is None:
            raise UserError(f"--extend {option}: NAME=N would be right, NAME one of {', '.join(LIMITS)} and N the new limit in all")
        found[name] = number
    return found


def _number(text: str, *, whole: bool) -> float | None:
    if whole:
        return int(text) if text.isdecimal() else None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None


def extended(tree: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
    """A copy of a sweep's tree with larger limits. Raises UserError for one that the sweep doesn't have, or that isn't larger."""
    changed = copy.deepcopy(dict(tree))
    for name, number in limits.items():
        section, key = LIMITS[name].rsplit(".", 1)
        if name == "trials":
            changed["search"] = changed.get("search") or {}
            changed["search"].setdefault("trials", 1)
        try:
            before = value_at(changed, LIMITS[name])
        except KeyError:
            before = None
        if before is None:
            raise UserError(f"--extend {name}={number:g}: the sweep has no {LIMITS[name]}; a limit that it has would be right")
        if number < before:
            raise UserError(f"--extend {name}={number:g}: the sweep has {before:g} already; more would be right")
        value_at(changed, section)[key] = number
    return changed
