"""Ranges as Optuna, Weights & Biases and Ray Tune spell them, and how the same range is written in a run's file."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fewshot_ray.spec.problems import Problem
from fewshot_ray.spec.ranges import range_of
from fewshot_ray.spec.wording import join, show

KINDS = {
    "float": ("uniform", "quniform", "q_uniform", "suggest_float", "suggest_uniform", "float"),
    "log": (
        *("loguniform", "log_uniform", "log_uniform_values", "qloguniform", "q_log_uniform", "q_log_uniform_values"),
        *("inv_log_uniform", "inv_log_uniform_values", "suggest_loguniform", "reciprocal", "log"),
    ),
    "int": ("int_uniform", "randint", "qrandint", "lograndint", "qlograndint", "suggest_int", "integer", "int", "range"),
    "choice": (
        *("choice", "grid_search", "values", "categorical", "categorical_w_probabilities", "suggest_categorical"),
        *("categories", "choices", "options"),
    ),
}
"""Other tools' names by ours; ours are among them, for a mapping below one of our names."""
OF_NAME = {name: kind for kind, names in KINDS.items() for name in names}
ENDS = (("min", "max"), ("low", "high"), ("lower", "upper"), ("start", "end"), ("start", "stop"))
BESIDE = {"distribution", "type", "log", "scale", "step", "q", "base", "name", "probabilities", "preset", "default"}
EXPONENTS = ("log_uniform", "q_log_uniform")
"""Distributions of Weights & Biases whose ends are exponents of e."""
CALL = re.compile(r"(?:\w+\.)*(\w+)\((.{0,200})\)")

IsWhole = Callable[[str], bool | None]
"""Tells whether the field at a dotted path takes only whole numbers; None where that isn't known."""


def foreign_ranges(tree: Any, path: str, is_whole: IsWhole) -> Iterator[Problem]:
    """Every range at or below `path` that is written as in another tool, with the line that is right."""
    if (right := right_spelling(tree, is_whole(path))) is not None:
        yield Problem(path, f"{show(tree)} is how other tools write a range; `{path.rpartition('.')[2]}: {right}` is right")
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from foreign_ranges(value, join(path, key), is_whole)
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from foreign_ranges(value, join(path, index), is_whole)


def right_spelling(value: Any, whole: bool | None = None) -> str | None:
    """The range of another tool's mapping or call (`tune.loguniform(1e-5, 1e-3)`) as a run's file has it; None where it is no range."""
    if isinstance(value, str):
        return _call(value, whole)
    if not isinstance(value, Mapping) or not value:
        return None
    named = value.get("distribution", value.get("type"))
    kind = OF_NAME.get(named) if isinstance(named, str) else None
    keys = [key for key in value if key not in BESIDE or isinstance(value[key], Mapping)]
    if kind == "choice" or (kind is None and len(keys) == 1 and OF_NAME.get(keys[0]) == "choice"):
        inner = value[keys[0]] if len(keys) == 1 else None
        return _choice(inner)
    if len(keys) == 1 and keys[0] in OF_NAME:
        return _below_name(OF_NAME[keys[0]], value[keys[0]], whole)
    for low, high in ENDS:
        if set(keys) == {low, high}:
            ends = [value[low], value[high]]
            if named in EXPONENTS and all(_is_number(end) and abs(end) < 700 for end in ends):
                ends = [float(f"{math.exp(end):.3g}") for end in ends]
            log = value.get("log") is True or value.get("scale") in ("log", "logarithmic", "reverse_log")
            return _of_ends("log" if log else kind, ends, whole)
    return None


def spelled_list(values: Sequence[Any], whole: bool | None = None) -> str:
    """`[a, b]`, given where one value is expected: the range between two numbers, else a choice."""
    if len(values) == 2 and all(_is_number(value) for value in values) and values[0] < values[1]:
        wide = not whole and values[0] > 0 and values[1] / values[0] >= 10
        range_ = _of_ends("log" if wide else None, values, whole)
        return f"{range_}` for a range, `{{choice: {show(values)}}}` for one of these values"
    return f"{{choice: {show(values)}}}"


def _below_name(kind: str, inner: Any, whole: bool | None) -> str | None:
    """The range from the value below a distribution's name, a list or mapping of the ends; None for a list below our own names."""
    if isinstance(inner, Mapping):
        for low, high in ENDS:
            if {low, high} <= inner.keys():
                log = inner.get("log") is True
                return _of_ends("log" if log else kind, [inner[low], inner[high]], whole)
        return None
    if isinstance(inner, list) and len(inner) >= 2:
        return _of_ends(kind, inner[:2], whole)
    return None


def _of_ends(kind: str | None, ends: Sequence[Any], whole: bool | None) -> str | None:
    if not all(_is_number(end) for end in ends):
        return None
    all_whole = all(isinstance(end, int) for end in ends)
    if whole or (kind is None and whole is None and all_whole):
        kind, ends = "int", [int(end) for end in ends]
    if kind is None or (kind == "int" and (whole is False or not all_whole)):
        kind = "float"
    try:
        range_of(kind, ends)
    except ValueError:
        return f"{{{kind}: [low, high]}}"
    return f"{{{kind}: {show(list(ends))}}}"


def _choice(inner: Any) -> str | None:
    if isinstance(inner, Mapping):
        inner = list(inner)
    if isinstance(inner, list):
        return f"{{choice: {show(inner)}}}" if inner else "{choice: [a, b]}"
    return None if inner is None else show(inner)


def _call(text: str, whole: bool | None) -> str | None:
    found = CALL.fullmatch(text.strip())
    kind = OF_NAME.get(found[1]) if found else None
    if found is None or kind is None:
        return None
    try:
        given = ast.literal_eval(f"[{found[2]}]")
    except (ValueError, SyntaxError):
        return f"{{{kind}: [{'a, b' if kind == 'choice' else 'low, high'}]}}"
    if kind == "choice":
        return _choice(given[0] if len(given) == 1 and isinstance(given[0], list) else given)
    return _of_ends(kind, given[:2], whole) if len(given) >= 2 else None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
