"""Compares the trees of two files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewshot_ray.spec.ranges import same


def differing_paths(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted paths at which two trees differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [
            difference
            for key in [*a, *(key for key in b if key not in a)]
            for difference in differing_paths(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if same(a, b) else [path]
