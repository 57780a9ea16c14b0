"""The space that a search draws from: the ranges of a tree, and which of them a trial has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fewshot_ray.spec.alternatives import Alternatives, By
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range, same
from fewshot_ray.spec.tree import children, label_at, partly, ranges, value_at
from fewshot_ray.spec.wording import join

PLAIN = "finetune"
"""The method that is plain fine-tuning, the control."""
METHOD = "method"
MOST_CASES = 500
"""Largest number of combinations of alternatives: each is checked as a file of its own."""


@dataclass(frozen=True)
class Parameter:
    """A range, with what a trial must have chosen to have it."""

    path: str
    range: Range
    conditions: tuple[tuple[str, str], ...] = ()
    """Dotted paths of choices, and the label that each must have, the outermost first."""
    source: str = ""
    """Dotted path in the file: `method.choice.2.ant.noise_steps`."""
    name: str = ""
    """Name in Optuna: the path; where the path has different ranges in different alternatives, also the labels of the first one with this.

    Alternatives with the same range share the parameter, so that a sampler learns from all of them."""


class Space:
    """All ranges of a tree. A choice comes before what depends on it, otherwise they are in the file's order.

    A trial without a value for `method` is plain fine-tuning beside the methods.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self.tree = tree
        found = list(_parameters(tree, "", "", (), tree))
        ordered = sorted(found, key=lambda one: not all(_above(on, one.path) for on, _ in one.conditions))  # it is stable
        self.parameters = [replace(parameter, name=_name(parameter, ordered)) for parameter in ordered]
        self.by_name: dict[str, Parameter] = {}
        for parameter in self.parameters:
            self.by_name.setdefault(parameter.name, parameter)
        self.is_conditional = any(parameter.conditions for parameter in self.parameters)

    def has(self, parameter: Parameter, values: Mapping[str, Any]) -> bool:
        """Whether a trial with these values by path has the parameter."""
        return all(self.label(on, values) == label for on, label in parameter.conditions)

    def label(self, on: str, values: Mapping[str, Any]) -> str:
        """The label of what a trial with these values has chosen at a path."""
        if on not in values:
            return PLAIN
        return label_at(self.tree, on, values) if on in self._plain_choices else str(values[on])

    @cached_property
    def _plain_choices(self) -> set[str]:
        """Paths of the choices of plain values that something depends on; those that are among trees have labels as values."""
        return {path for path, range_ in ranges(self.tree).items() if isinstance(range_, Choice) and not isinstance(range_, Alternatives)}

    def having(self, values: Mapping[str, Any]) -> list[Parameter]:
        """The parameters that a trial with these values has."""
        return [parameter for parameter in self.parameters if self.has(parameter, values)]

    def at(self, path: str, values: Mapping[str, Any]) -> Parameter:
        """The parameter that a trial with these values has at a path. Raises KeyError."""
        found = next((parameter for parameter in self.parameters if parameter.path == path and self.has(parameter, values)), None)
        if found is None:
            raise KeyError(path)
        return found

    def choose(self, value: Callable[[Parameter], Any]) -> dict[str, Any]:
        """A trial's values by path; `value` is asked for those that it has."""
        chosen: dict[str, Any] = {}
        for parameter in self.parameters:
            if self.has(parameter, chosen):
                chosen[parameter.path] = value(parameter)
        return chosen

    def is_complete(self, values: Mapping[str, Any]) -> bool:
        """Whether these are the values of all parameters that a trial with them has, and no others."""
        return values.keys() == {parameter.path for parameter in self.having(values)}

    @cached_property
    def count(self) -> float:
        """Number of configurations."""
        return sum(math.prod(range_.count for range_ in ranges(tree).values()) for tree in flat_trees(self.tree))

    def where(self, name: str) -> str:
        """Which trials have the parameter, in words (` where method is ant or ant+sdft`); empty for all."""
        having = [parameter.conditions for parameter in self.parameters if parameter.name == name]
        if not all(having):
            return ""
        if all(len(conditions) == 1 for conditions in having) and len({on for ((on, _),) in having}) == 1:
            return f" where {having[0][0][0]} is {' or '.join(label for ((_, label),) in having)}"
        return " where " + " or ".join(" and ".join(f"{on} is {label}" for on, label in conditions) for conditions in having)


def decisions(space: Space) -> list[dict[str, Any]]:
    """Every combination of what the other ranges depend on, by path; [{}] where nothing depends. At most MOST_CASES + 1 are made."""
    needed = {on for parameter in space.parameters for on, _ in parameter.conditions}
    found: list[dict[str, Any]] = [{}]
    for parameter in space.parameters:
        range_, named = parameter.range, parameter.path in needed and not parameter.conditions
        if isinstance(range_, Alternatives) or (named and isinstance(range_, Choice)):
            found = [
                one
                for chosen in found
                for one in ([{**chosen, parameter.path: v} for v in range_.values] if space.has(parameter, chosen) else [chosen])
            ][: MOST_CASES + 1]
    return found


def flat_trees(tree: Mapping[str, Any]) -> Iterator[Any]:
    """The tree for each combination of alternatives, in which every trial has every range; its own copy where it has no alternatives."""
    for chosen in decisions(Space(tree)):
        yield partly(tree, chosen)


def dependents(tree: Any, path: str = "", source: str = "") -> Iterator[tuple[str, str, By]]:
    """Every `By` in a tree with its path, and its path in the file."""
    if isinstance(tree, By):
        yield path, source, tree
        for label, branch in tree.branches.items():
            yield from dependents(branch, path, join(source, label))
    elif isinstance(tree, Alternatives):
        for index, one in enumerate(tree.trees):
            yield from dependents(one, path, join(source, f"choice.{index}"))
    else:
        for key, value in children(tree):
            yield from dependents(value, join(path, key), join(source, key))


def _parameters(tree: Any, path: str, source: str, conditions: tuple[tuple[str, str], ...], root: Any) -> Iterator[Parameter]:
    if isinstance(tree, By):
        searched = isinstance(value_at(root, tree.on), Choice)
        for label, branch in tree.branches.items():
            if searched or label == label_at(root, tree.on, {}):
                more = ((tree.on, label),) if searched else ()
                yield from _parameters(branch, path, join(source, label), (*conditions, *more), root)
    elif isinstance(tree, (FloatRange, IntRange, Choice)):
        yield Parameter(path, tree, conditions, source)
        if isinstance(tree, Alternatives):
            for index, (label, one) in enumerate(zip(tree.values, tree.trees, strict=True)):
                yield from _parameters(one, path, join(source, f"choice.{index}"), (*conditions, (path, label)), root)
    else:
        for key, value in children(tree):
            yield from _parameters(value, join(path, key), join(source, key), conditions, root)


def _above(on: str, path: str) -> bool:
    return path == on or path.startswith(f"{on}.")


def _name(parameter: Parameter, parameters: list[Parameter]) -> str:
    at_path = [other for other in parameters if other.path == parameter.path]
    first = next(other for other in at_path if _same_values(other.range, parameter.range))
    if all(_same_values(other.range, parameter.range) for other in at_path):
        return parameter.path
    return f"{parameter.path}[{', '.join(label for _, label in first.conditions)}]"


def _same_values(a: Range, b: Range) -> bool:
    """Whether two ranges have the same values; their presets may differ."""
    plain = [one if isinstance(one, Choice) else replace(one, preset=None) for one in (a, b)]
    return same(*plain)
