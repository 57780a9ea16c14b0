"""A tree against a typed model, with errors of one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fewshot_ray.errors import UserError
from fewshot_ray.spec.cross_checks import cross_checks
from fewshot_ray.spec.document import Document, ranges, substitute, value_at
from fewshot_ray.spec.expected import describe, expected_at, known_keys, paths_of_key
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.wording import join, nearest, show

Model = TypeVar("Model", bound=BaseModel)

_TOO = {
    "greater_than": "is too small",
    "greater_than_equal": "is too small",
    "less_than": "is too large",
    "less_than_equal": "is too large",
    "too_short": "is too short",
    "too_long": "is too long",
    "string_too_short": "is too short",
    "string_too_long": "is too long",
    "string_pattern_mismatch": "does not fit",
}


def load(model: type[Model], tree: Any, *, document: Document, path: str = "") -> Model:
    """`tree`, which stands at the dotted `path` of `document`, as a `model`.

    Raises UserError for the first error, an unknown key before all others, and says how many more there are.
    """
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise _user_error(error, model, tree, document, path) from error


def endpoint_trees(tree: Any) -> Iterator[Any]:
    """Copies of `tree` without ranges: all at their first end, all at their last, and each at each of its ends with the others at either.

    So every end of a range meets every end of each other numeric range, which is what a bound between two fields needs.
    """
    found = ranges(tree)
    lows = {path: range_.endpoints()[0] for path, range_ in found.items()}
    yield substitute(tree, lows)
    if len(found) > 1:
        highs = {path: range_.endpoints()[-1] for path, range_ in found.items()}
        yield substitute(tree, highs)
        for path, range_ in found.items():
            for others in (lows, highs):
                yield from (substitute(tree, {**others, path: end}) for end in range_.endpoints())
    else:
        yield from (substitute(tree, {path: end}) for path, range_ in found.items() for end in range_.endpoints()[1:])


def file_spec(document: Document) -> FileSpec:
    """The document as a FileSpec, valid at every end of every range; returned is the one at the ranges' first ends.

    Raises UserError for the first error, and for a range outside `method` and `train`.
    """
    for path, range_ in ranges(document.tree).items():
        if not path.startswith(("method.", "train.")):
            reason = f"trials that differ in {path.partition('.')[0]} would not be comparable"
            raise document.error(path, f"{range_.describe()} is a range, and {reason}; ranges below method and train are right")
    specs = []
    for tree in endpoint_trees(document.tree):
        spec = load(FileSpec, tree, document=document)
        problems = list(cross_checks(spec))
        if problems:
            (path, message), more = problems[0], len(problems) - 1
            raise document.error(path, message + _and_more(more))
        specs.append(spec)
    return specs[0]


class _Problem(NamedTuple):
    keys: tuple[str | int, ...]
    details: ErrorDetails

    @property
    def is_unknown_key(self) -> bool:
        return self.details["type"] == "extra_forbidden"


def _user_error(error: ValidationError, model: type[BaseModel], tree: Any, document: Document, path: str) -> UserError:
    found = [_Problem(_keys_in_tree(details, tree), details) for details in error.errors(include_url=False)]
    # A value that fits no member of a union gets an error for each: those below it, or else the first, say what is wrong.
    deepest = [p for p in found if not any(len(q.keys) > len(p.keys) and q.keys[: len(p.keys)] == p.keys for q in found)]
    by_place: dict[tuple[str | int, ...], _Problem] = {}
    # Of those at one place, a bound that is broken says more than another type that does not fit.
    for problem in sorted(deepest, key=lambda p: p.details["type"] not in _TOO):
        by_place.setdefault(problem.keys, problem)
    in_order = sorted(dict.fromkeys(p.keys for p in deepest), key=lambda keys: not by_place[keys].is_unknown_key)
    first = by_place[in_order[0]]
    full_path = path
    for key in first.keys:
        full_path = join(full_path, key)
    return document.error(full_path, _message(first, model, document, full_path) + _and_more(len(in_order) - 1))


def _keys_in_tree(details: ErrorDetails, tree: Any) -> tuple[str | int, ...]:
    """The error's location without what pydantic adds to it: the names of a union's members."""
    keys: list[str | int] = []
    for index, key in enumerate(details["loc"]):
        items = dict(enumerate(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else {}
        if key in items:
            tree = items[key]
            keys.append(key)
        elif details["type"] == "missing" and index == len(details["loc"]) - 1:
            keys.append(key)
    return tuple(keys)


def _message(problem: _Problem, model: type[BaseModel], document: Document, path: str) -> str:
    details = problem.details
    if problem.is_unknown_key:
        return _unknown_key(problem, model)
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    expected = expected_at(model, problem.keys)
    right = f"{describe(expected)} is right"
    if details["type"] == "missing":
        return f"is missing; {right}"
    given = show(details["input"]) + _from_range(document, path)
    if details["type"] in _TOO:
        return f"{given} {_TOO[details['type']] if details['input'] not in ('', [], {}) else 'is empty'}; {right}"
    if details["type"] == "literal_error":
        near = nearest(str(details["input"]), re.findall(r"'([^']*)'", details["ctx"]["expected"]))
        return f"{given} is not known; {right}" + (f" (did you mean {show(near)}?)" if near else "")
    kind = describe(expected, bounds=False)
    if kind in ("a number", "a whole number") and details["input"] is not None:
        return f"{given} is not {kind}; {right}"
    return f"{given} is given; {right}"


def _unknown_key(problem: _Problem, model: type[BaseModel]) -> str:
    *above, key = problem.keys
    known = known_keys(expected_at(model, above))
    if near := nearest(str(key), known):
        return f"the key is not known; did you mean {near}?"
    elsewhere = list(paths_of_key(model, str(key)))
    if len(elsewhere) == 1:
        return f"the key is not known here; did you mean {elsewhere[0]}?"
    return f"the key is not known; known here: {', '.join(known)}"


def _from_range(document: Document, path: str) -> str:
    """Which range of the file a value came from, for a value that is the end of one."""
    try:
        value = value_at(document.tree, path)
    except KeyError:
        return ""
    return f" (of {value.describe()})" if isinstance(value, (FloatRange, IntRange, Choice)) else ""


def _and_more(count: int) -> str:
    return f" (and {count} more)" if count else ""
