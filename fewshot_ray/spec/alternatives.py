"""Choices whose alternatives hold ranges of their own, and values that depend on what is chosen elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.wording import show

BY = "by"
"""Key that makes a mapping below `method` or `train` a `By`."""


@dataclass(frozen=True)
class Alternatives(Choice):
    """A choice among trees, each of which may hold ranges: what is below one exists only in the trials that chose it.

    A trial's value is the alternative's label (`values`), which is the text itself, a mapping's keys (`ant+sdft`), else the value as text.
    """

    trees: tuple[Any, ...] = ()
    """What each label stands for."""

    def tree(self, label: Any) -> Any:
        """The tree that a label stands for."""
        return self.trees[self.values.index(label)]

    def to_yaml(self) -> dict[str, list[Any]]:
        """The mapping that a file has for the choice."""
        return {"choice": list(self.trees)}


@dataclass(frozen=True)
class By:
    """A value that depends on the alternative chosen at another dotted path."""

    on: str
    branches: Mapping[str, Any]
    """Value, range or tree by the alternative's label."""

    def to_yaml(self) -> dict[str, Any]:
        """The mapping that a file has for it."""
        return {BY: self.on, **self.branches}


def alternatives(trees: Sequence[Any]) -> Alternatives:
    """A choice among trees. Raises ValueError where there is none, one is given twice, or is a range itself."""
    Choice(tuple(trees))
    if wrong := next((tree for tree in trees if is_searched(tree)), None):
        said = f"by: {wrong.on}" if isinstance(wrong, By) else wrong.describe()
        raise ValueError(f"{said} stands in a choice by itself; values, and mappings with ranges in them, are right there")
    return Alternatives(labels(trees), tuple(trees))


def choice_of_methods(values: Sequence[Any]) -> Alternatives:
    """A choice among methods and combinations of them, each given as a name, a list of names or a mapping of settings.

    Raises ValueError for anything else, and where two are the same.
    """
    return alternatives([_combination(value) for value in values])


def _combination(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        return {name: {} if settings is None else settings for name, settings in value.items()}
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        right = "a method's name, a list of names or a mapping of methods to settings"
        raise ValueError(f"{show(value)} is given in the choice; {right} is right there")
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ValueError(f"{show(twice)} is given twice in {show(value)}; once is right")
    return {name: {} for name in names}


def labels(values: Iterable[Any]) -> tuple[str, ...]:
    """A label of each of the alternatives of a choice; where several would have the same one, their numbers (from 1) are added."""
    plain = [label_of(value) for value in values]
    numbered = [f"{label} ({number})" for number, label in enumerate(plain, start=1)]
    some = [numbered[index] if plain.count(label) > 1 else label for index, label in enumerate(plain)]
    return tuple(some if len(set(some)) == len(some) else numbered)


def label_of(value: Any) -> str:
    """The label of one value: a text as it is, a mapping's keys, anything else as in a file."""
    return value if isinstance(value, str) else "+".join(map(str, value)) if isinstance(value, Mapping) and value else show(value)


def is_searched(tree: Any) -> bool:
    """Whether a node of a tree is a range, or depends on one."""
    return isinstance(tree, (FloatRange, IntRange, Choice, By))


def holds_range(tree: Any) -> bool:
    """Whether there is a range anywhere in a tree."""
    if isinstance(tree, Mapping):
        return any(map(holds_range, tree.values()))
    return any(map(holds_range, tree)) if isinstance(tree, (list, tuple)) else is_searched(tree)


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """`change` of a tree; where it is a choice among trees or a `By`, that of each of them."""
    if isinstance(tree, Alternatives):
        return alternatives([mapped(one, change) for one in tree.trees])
    if isinstance(tree, By):
        return By(tree.on, {label: mapped(branch, change) for label, branch in tree.branches.items()})
    return change(tree)
