"""Validates a tree against a typed model, with errors of one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fewshot_ray.spec.alternatives import is_searched
from fewshot_ray.spec.cases import over_cases, space_problems
from fewshot_ray.spec.cross_checks import cross_checks
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.expected import Expected, describe, expected_at, known_keys, paths_of_key, takes_whole_numbers, whole_numbers
from fewshot_ray.spec.foreign_ranges import IsWhole, foreign_ranges, spelled_list
from fewshot_ray.spec.problems import Problem, apart_from, raise_any, user_error
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.space import flat_trees
from fewshot_ray.spec.tree import ranges, substitute, value_at
from fewshot_ray.spec.unknown_keys import unknown_key
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
    """The `tree` at the dotted `path` of `document` as a `model`. Raises UserError, with a line per error."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise user_error(document, _problems(error, model, tree, document, path)) from error


def problems_of(model: type[BaseModel], tree: Any, *, document: Document, path: str = "") -> list[Problem]:
    """The errors that `load` would raise."""
    try:
        model.model_validate(tree)
    except ValidationError as error:
        return _problems(error, model, tree, document, path)
    return []


def endpoint_trees(tree: Any) -> Iterator[Any]:
    """Copies of `tree` with ranges replaced by ends: all first, all last, and each range at each end with the others at first or last.

    So every pair of ends of two numeric ranges occurs, as a check between two fields needs. With alternatives that is so for each
    combination of them.
    """
    for flat in flat_trees(tree):
        yield from _at_ends(flat)


def _at_ends(tree: Any) -> Iterator[Any]:
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
    """The document as a FileSpec at the ranges' first ends, checked at every end of every range.

    Raises UserError with a line per error; errors between fields are reported once each field by itself is right.
    """
    raise_any(document, section_problems(document))
    specs = [FileSpec.model_validate(tree) for tree in endpoint_trees(document.tree)]
    raise_any(document, over_cases(document, _problems_between))
    return specs[0]


def _problems_between(case: Document) -> Iterator[Problem]:
    for tree in endpoint_trees(case.tree):
        yield from (Problem(*problem) for problem in cross_checks(FileSpec.model_validate(tree)))


def section_problems(document: Document, is_whole: IsWhole | None = None) -> list[Problem]:
    """Errors of single fields of the document: types, bounds, unknown keys, ranges where none are allowed.

    `is_whole` answers for fields below `method`, which FileSpec doesn't describe.
    """
    return checked_in_cases(document, lambda case: case_problems(case, is_whole))


def checked_in_cases(document: Document, find: Callable[[Document], Iterable[Problem]]) -> list[Problem]:
    """What is wrong with the search's space, and what `find` finds in each of its cases."""
    wrong = space_problems(document)
    if any(problem.path.startswith(("method", "train")) for problem in wrong):
        return wrong
    return [*wrong, *apart_from({problem.path for problem in wrong}, over_cases(document, find))]


def case_problems(document: Document, is_whole: IsWhole | None = None) -> list[Problem]:
    """Errors of single fields of a document in which every trial has every range."""
    asked = is_whole or (lambda path: takes_whole_numbers(FileSpec, path.split(".")))
    found = [problem for section in ("method", "train") for problem in foreign_ranges(document.tree.get(section), section, asked)]
    said = {problem.path for problem in found}
    for tree in endpoint_trees(document.tree):
        found += apart_from(said, problems_of(FileSpec, tree, document=document))
    return found


class _Problem(NamedTuple):
    keys: tuple[str | int, ...]
    details: ErrorDetails

    @property
    def is_unknown_key(self) -> bool:
        return self.details["type"] == "extra_forbidden"


def _problems(error: ValidationError, model: type[BaseModel], tree: Any, document: Document, path: str) -> list[Problem]:
    found = [_Problem(_keys_in_tree(details, tree), details) for details in error.errors(include_url=False)]
    # A value that fits no member of a union gets an error per member: those below it, or else the first, are the informative ones.
    deepest = [p for p in found if not any(len(q.keys) > len(p.keys) and q.keys[: len(p.keys)] == p.keys for q in found)]
    by_place: dict[tuple[str | int, ...], _Problem] = {}
    # Of several at one path, a violated bound is more informative than a type that doesn't fit.
    for problem in sorted(deepest, key=lambda p: p.details["type"] not in _TOO):
        by_place.setdefault(problem.keys, problem)
    unknown = {p.keys: _unknown_key(p, model, path) for p in by_place.values() if p.is_unknown_key}
    meant = {field for _, field in unknown.values()}
    problems = []
    for keys in dict.fromkeys(p.keys for p in deepest):
        full_path = path
        for key in keys:
            full_path = join(full_path, key)
        problem = by_place[keys]
        if problem.details["type"] == "missing" and full_path in meant:
            continue  # it is there under another name, which is reported
        said = unknown[keys][0] if keys in unknown else _message(problem, model, document, full_path)
        problems.append(Problem(full_path, said))
    return problems


def _keys_in_tree(details: ErrorDetails, tree: Any) -> tuple[str | int, ...]:
    """The error's location without the names of a union's members, which pydantic adds."""
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
    if details["type"] == "value_error":
        return str(details["ctx"]["error"])
    expected = expected_at(model, problem.keys)
    right = f"{describe(expected)} is right"
    if details["type"] == "missing":
        return f"is missing; {right}"
    given = show(details["input"]) + _from_range(document, path)
    if other := _other_spelling(details["input"], expected, path):
        return f"{given} is given; `{path.rpartition('.')[2]}: {other}` is right"
    if details["type"] in _TOO:
        return f"{given} {_TOO[details['type']] if details['input'] not in ('', [], {}) else 'is empty'}; {right}"
    if details["type"] == "literal_error":
        near = nearest(str(details["input"]), re.findall(r"'([^']*)'", details["ctx"]["expected"]))
        return f"{given} is not known; {right}" + (f" (did you mean {show(near)}?)" if near else "")
    kind = describe(expected, bounds=False)
    if kind in ("a number", "a whole number") and details["input"] is not None:
        return f"{given} is not {kind}; {right}"
    return f"{given} is given; {right}"


def _unknown_key(problem: _Problem, model: type[BaseModel], path: str) -> tuple[str, str | None]:
    *above, key = problem.keys
    section = ".".join(str(part) for part in ([path] if path else []) + above)
    known = known_keys(expected_at(model, above))
    return unknown_key(section, str(key), problem.details["input"], known, paths_of_key(model, str(key)))


def _other_spelling(value: Any, expected: list[Expected], path: str) -> str | None:
    """The right text for a list, or for a method given by its bare name; None for other values."""
    if path == "method":
        return _methods(value)
    takes_list = any(member.is_list for alternative in expected for member in alternative.members())
    if path.startswith(("method.", "train.")) and isinstance(value, list) and len(value) > 1 and not takes_list:
        return spelled_list(value, whole_numbers(expected))
    return None


def _methods(value: Any) -> str | None:
    """`ant` and `[ant, sdft]` as the mapping that is meant."""
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and names and all(isinstance(name, str) and name for name in names):
        return show({name: {} for name in names})
    if isinstance(names, list) and names and all(isinstance(name, dict) and len(name) == 1 for name in names):
        return show({key: item for name in names for key, item in name.items()})
    return None


def _from_range(document: Document, path: str) -> str:
    """For a value that is an end of a range in the file, a note that names the range."""
    try:
        value = value_at(document.tree, path)
    except KeyError:
        return ""
    return f" (of {value.describe()})" if is_searched(value) else ""
