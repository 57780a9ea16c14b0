"""The errors of a file, a dotted field and a message each, collected so that all are reported at once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from fewshot_ray.errors import UserError

if TYPE_CHECKING:
    from fewshot_ray.spec.document import Document

MOST_SHOWN = 20


class Problem(NamedTuple):
    """One error in a file."""

    path: str
    """Dotted path of the field; '' for the file as a whole."""
    message: str
    """What is given and what would be right."""
    line: int | None = None
    """Line in the file, from 1; None: that of the path."""


def user_error(document: Document, problems: Iterable[Problem]) -> UserError:
    """A UserError of a line each, in the order of the file's lines; of several problems of one field only the first is shown."""
    said: dict[tuple[str, int | None], Problem] = {}
    for problem in problems:
        said.setdefault((problem.path, problem.line), problem)
    in_order = sorted(said.values(), key=lambda problem: problem.line or document.line(problem.path) or 0)
    lines = [str(document.error(problem.path, problem.message, line=problem.line)) for problem in in_order[:MOST_SHOWN]]
    if len(in_order) > MOST_SHOWN:
        lines.append(f"{document.name}: and {len(in_order) - MOST_SHOWN} more errors")
    return UserError(*lines)


def raise_any(document: Document, problems: Iterable[Problem]) -> None:
    """Raise UserError, with a line per problem, where there are any."""
    if found := list(problems):
        raise user_error(document, found)


def apart_from(paths: Collection[str], problems: Iterable[Problem]) -> Iterator[Problem]:
    """The problems that are neither at one of `paths` nor below it: those fields have been reported already."""
    for problem in problems:
        if not any(problem.path == path or problem.path.startswith(f"{path}.") for path in paths):
            yield problem
