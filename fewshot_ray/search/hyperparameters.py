"""A trial's values for TensorBoard's table of hyperparameters, by dotted path and of one type in all trials of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewshot_ray.spec.document import Document
from fewshot_ray.spec.validate import endpoint_trees


class Hyperparameters:
    """The hyperparameters of a sweep's trials: everything below `method` and `train`, and the seed.

    A value that is a number only in some trials (a choice with null) is text in all: TensorBoard compares selected values as texts, so
    trials with the number would never be shown.
    """

    def __init__(self, document: Document) -> None:
        kinds: dict[str, set[bool]] = {}
        for tree in endpoint_trees(document.tree):  # these have every value of every choice
            for path, value in _flat(tree).items():
                kinds.setdefault(path, set()).add(is_number(value))
        self._texts = {path for path, found in kinds.items() if len(found) > 1}

    def of(self, tree: Mapping[str, Any], seed: int) -> dict[str, float | str]:
        """Values by dotted path; booleans as text."""
        values = {path: value if is_number(value) and path not in self._texts else str(value) for path, value in _flat(tree).items()}
        return {**values, "seed": seed}


def is_number(value: object) -> bool:
    """Whether the value is a number in TensorBoard's table, which a boolean isn't."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        parts = tree.items() if path else [(key, tree[key]) for key in ("method", "train") if key in tree]
        result: dict[str, Any] = {}
        for key, value in parts:
            result |= _flat(value, f"{path}.{key}" if path else str(key))
        return result or ({path: ""} if path else {})
    return {path: tree}
