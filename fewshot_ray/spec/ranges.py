"""The four kinds of range that a run's file may have in place of a value; numeric ones may give a preset."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewshot_ray.spec.wording import show

RANGE_KINDS = ("float", "log", "int", "choice")


@dataclass(frozen=True)
class FloatRange:
    """Every number in [low, high]; with `log`, drawn uniformly in its logarithm.

    Raises ValueError for ends that aren't finite numbers, for low >= high, for a log range that reaches 0, and for a preset outside.
    """

    low: float
    high: float
    log: bool = False
    preset: float | None = None
    """The value in a sweep's first trial; None for the field's own preset."""

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if not _is_number(end):
                raise ValueError(f"{show(end)} is not a finite number; {self._right} is right")
        if self.low >= self.high:
            raise ValueError(f"low={show(self.low)}, high={show(self.high)}: low must be below high; {self._right} is right")
        if self.log and self.low <= 0:
            raise ValueError(f"low={show(self.low)}: a log range must begin above 0; {self._right} is right")
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        _check_preset(self, f"a number of {self.low:g} .. {self.high:g}")
        if self.preset is not None:
            object.__setattr__(self, "preset", float(self.preset))

    @property
    def _right(self) -> str:
        return "{log: [1e-5, 3e-4]}" if self.log else "{float: [0, 10]}"

    @property
    def count(self) -> float:
        """How many values it has: more than a sweep can try."""
        return math.inf

    def endpoints(self) -> tuple[float, float]:
        """The values that must be valid so that all values in the range are."""
        return (self.low, self.high)

    def contains(self, value: object) -> bool:
        """Whether `value` is a number between the ends, the ends included."""
        return isinstance(value, (int, float)) and not isinstance(value, bool) and self.low <= value <= self.high

    def to_yaml(self) -> dict[str, Any]:
        """The mapping that a file has for the range."""
        return {"log" if self.log else "float": [self.low, self.high]} | _preset_key(self)

    def describe(self) -> str:
        """The range in one phrase, e.g. `log 1e-05 .. 0.0003`."""
        return f"{'log' if self.log else 'float'} {show(self.low)} .. {show(self.high)}"


@dataclass(frozen=True)
class IntRange:
    """Every whole number in [low, high]. Raises ValueError for ends that are no whole numbers, low >= high, and a preset outside."""

    low: int
    high: int
    preset: int | None = None
    """The value in a sweep's first trial; None for the field's own preset."""

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if not isinstance(end, int) or isinstance(end, bool):
                raise ValueError(f"{show(end)} is not a whole number; {{int: [1, 20]}} is right")
        if self.low >= self.high:
            raise ValueError(f"low={self.low}, high={self.high}: low must be below high; {{int: [1, 20]}} is right")
        _check_preset(self, f"a whole number of {self.low} .. {self.high}")

    @property
    def count(self) -> float:
        """How many values it has."""
        return self.high - self.low + 1

    def endpoints(self) -> tuple[int, int]:
        """The values that must be valid so that all values in the range are."""
        return (self.low, self.high)

    def contains(self, value: object) -> bool:
        """Whether `value` is a whole number between the ends, the ends included."""
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high

    def to_yaml(self) -> dict[str, Any]:
        """The mapping that a file has for the range."""
        return {"int": [self.low, self.high]} | _preset_key(self)

    def describe(self) -> str:
        """The range in one phrase, e.g. `int 1 .. 20`."""
        return f"int {self.low} .. {self.high}"


@dataclass(frozen=True)
class Choice:
    """One of several values of any plain kind. Raises ValueError when there is none or one is repeated.

    `1`, `1.0` and `true` are three different values here, as they are in a file.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise ValueError("a choice needs at least one value; {choice: [a, b]} is right")
        for index, value in enumerate(self.values):
            if any(same(value, earlier) for earlier in self.values[:index]):
                raise ValueError(f"{show(value)} is given twice in the choice; once is right")

    @property
    def count(self) -> float:
        """How many values it has."""
        return len(self.values)

    def endpoints(self) -> tuple[Any, ...]:
        """All values, which must all be valid."""
        return self.values

    def contains(self, value: object) -> bool:
        """Whether `value` is one of the choices."""
        return self.index(value) is not None

    def index(self, value: object) -> int | None:
        """The value's index among the choices; None where it isn't one of them."""
        return next((index for index, choice in enumerate(self.values) if same(value, choice)), None)

    def to_yaml(self) -> dict[str, list[Any]]:
        """The mapping that a file has for the choice."""
        return {"choice": list(self.values)}

    def describe(self) -> str:
        """The choice in one phrase, e.g. `choice 'full', 'lora'`."""
        return "choice " + ", ".join(show(value) for value in self.values)


Range = FloatRange | IntRange | Choice


def range_of(kind: str, values: Sequence[Any], preset: Any = None) -> Range:
    """The range written `{kind: values, preset: preset}` in a file; `kind` is one of RANGE_KINDS.

    Raises ValueError, in one line, where `values` aren't valid for the kind.
    """
    if kind == "choice" and preset is not None:
        raise ValueError("a choice's first value is its preset; the choice alone, in that order, is right")
    if kind == "choice":
        return Choice(tuple(values))
    if len(values) != 2:
        example = {"float": "[0, 10]", "log": "[1e-5, 3e-4]", "int": "[1, 20]"}[kind]
        raise ValueError(f"{len(values)} values are given; two, low and high, are right: {{{kind}: {example}}}")
    low, high = values
    return IntRange(low, high, preset) if kind == "int" else FloatRange(low, high, log=kind == "log", preset=preset)


def _check_preset(range_: FloatRange | IntRange, right: str) -> None:
    if range_.preset is not None and not range_.contains(range_.preset):
        raise ValueError(f"preset={show(range_.preset)} is outside; {right} is right")


def _preset_key(range_: FloatRange | IntRange) -> dict[str, Any]:
    return {} if range_.preset is None else {"preset": range_.preset}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def same(a: Any, b: Any) -> bool:
    """Whether two trees are the same in a file, where 1, 1.0 and true are three values, also within lists and mappings."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return same(a.to_yaml(), b.to_yaml()) if hasattr(a, "to_yaml") else bool(a == b)
