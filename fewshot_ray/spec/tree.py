"""A run's file as a tree: what stands at a path, and values put in place of ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewshot_ray.spec.alternatives import Alternatives, By, label_of, labels
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range
from fewshot_ray.spec.wording import join


def ranges(tree: Any, path: str = "") -> dict[str, Range]:
    """Every range in `tree` by its dotted path, in the file's order; `path` is put before each.

    Those that some trials only have (inside an alternative, or below `by`) are not among them: `Space` has all.
    """
    if isinstance(tree, (FloatRange, IntRange, Choice)):
        return {path: tree}
    found: dict[str, Range] = {}
    for key, value in children(tree):
        found |= ranges(value, join(path, key))
    return found


def substitute(tree: Any, values: Mapping[str, Any]) -> Any:
    """A deep copy of `tree` with `values[path]` in place of the range at each `path`; of a choice among trees the value is the label.

    Raises KeyError when a range is left without a value, or a value names no range.
    """
    used: set[str] = set()
    result = _replace(tree, values, "", tree, used)
    missing, unknown = sorted(ranges(result)), sorted(values.keys() - used)
    if missing or unknown:
        raise KeyError(f"ranges without a value: {missing}; values without a range: {unknown}")
    return result


def partly(tree: Any, values: Mapping[str, Any]) -> Any:
    """As `substitute`, but ranges without a value stay. There must be one for each choice among trees, and for what `by` names."""
    return _replace(tree, values, "", tree, set())


def value_at(tree: Any, path: str) -> Any:
    """The value at the dotted `path` in `tree`. Raises KeyError where there is none."""
    for part in path.split(".") if path else ():
        below = {str(key): value for key, value in children(tree)}
        if part not in below:
            raise KeyError(path)
        tree = below[part]
    return tree


def label_at(tree: Any, path: str, values: Mapping[str, Any]) -> str:
    """The label of the value that a trial has at `path`. Raises KeyError where it has none."""
    node = value_at(tree, path)
    if isinstance(node, Alternatives):
        return str(values[path])
    if isinstance(node, Choice):
        index = node.index(values[path])
        assert index is not None
        return labels(node.values)[index]
    return label_of(node)


def children(tree: Any) -> list[tuple[str | int, Any]]:
    """The keys and values of a mapping or list; of anything else none."""
    if isinstance(tree, dict):
        return list(tree.items())
    return list(enumerate(tree)) if isinstance(tree, list) else []


def _replace(tree: Any, values: Mapping[str, Any], path: str, root: Any, used: set[str]) -> Any:
    if isinstance(tree, By):
        return _replace(tree.branches[label_at(root, tree.on, values)], values, path, root, used)
    if isinstance(tree, (FloatRange, IntRange, Choice)):
        if path not in values:
            return tree
        used.add(path)
        if isinstance(tree, Alternatives):
            return _replace(tree.tree(values[path]), values, path, root, used)
        return _replace(values[path], {}, path, root, used)  # a choice may be a mapping: it is copied too
    if isinstance(tree, dict):
        return {key: _replace(value, values, join(path, key), root, used) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_replace(value, values, join(path, index), root, used) for index, value in enumerate(tree)]
    return tree
