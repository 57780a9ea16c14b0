"""A run's file as a tree of plain values and ranges, with the line of each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.spec.places import Place, expanded, resolve
from fewshot_ray.spec.problems import Problem, raise_any, user_error
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.tree import ranges, substitute, value_at
from fewshot_ray.spec.wording import show
from fewshot_ray.spec.yaml_text import from_yaml, to_yaml

__all__ = ["Document", "parse_document", "ranges", "read_document", "substitute", "to_yaml", "value_at"]

_MAX_BYTES = 256 * 1024


@dataclass(frozen=True)
class Document:
    """The contents of a run's file.

    `tree`: dicts, lists and plain values, with a Range where the file has a range, and a By where a value depends on another.
    `lines`: line (from 1) of each dotted path; the items of a list count from 0 (`train.betas.1`).
    """

    tree: dict[str, Any]
    name: str
    lines: Mapping[str, int] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    """The places as written in the file, by dotted path; `tree` has them resolved."""

    def line(self, path: str) -> int | None:
        """The line of `path`, or of the nearest path above it that is in the file; None where neither is known."""
        while path and path not in self.lines:
            path = path.rpartition(".")[0]
        return self.lines.get(path)

    def error(self, path: str, message: str, *, line: int | None = None) -> UserError:
        """A UserError `file, line 12: train.lr: message`; the line is that of the nearest path above where `path` is not in the file."""
        line = self.line(path) if line is None else line
        place = self.name if line is None else f"{self.name}, line {line}"
        return UserError(f"{place}: {path}: {message}" if path else f"{place}: {message}")

    def missing(self, place: Place) -> UserError:
        """The message for a place that doesn't exist: what was given, and where it was looked for."""
        given, looked = self.given.get(place.path, place.value), place.bare
        where = "" if given == looked else f" ({looked})"
        elsewhere = os.path.abspath(expanded(given))
        if elsewhere != looked and os.path.exists(elsewhere):
            where += f", and {elsewhere} isn't meant, since inputs are relative to the file"
        right = "a folder, a .zip or a .parquet file of images" if place.images else "a file or folder that exists"
        return self.error(place.path, f"{given}: there is no such file or folder{where}; {right} is right")


def read_document(path: str | os.PathLike[str]) -> Document:
    """The file at `path`, its places resolved (`places.resolve`).

    Raises UserError when it can't be read or is not a UTF-8 YAML mapping.
    """
    return located(parse_document(read_text(path), os.fspath(path)), path)


def located(document: Document, path: str | os.PathLike[str]) -> Document:
    """The document with its places resolved relative to the file at `path`, which it was read from."""
    return replace(document, given=resolve(document.tree, os.path.dirname(os.path.abspath(_found(path)))))


def _found(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    return name if os.path.exists(name) else expanded(name)


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of the file at `path`. Raises UserError when it can't be read, is larger than 256 KiB or is not UTF-8."""
    name = os.fspath(path)
    try:
        with Path(_found(path)).open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise UserError(f"{name}: there is no such file; the path of a run's YAML file is right") from error
    except IsADirectoryError as error:
        raise UserError(f"{name}: is a folder; the path of a run's YAML file is right") from error
    except OSError as error:
        raise UserError(f"{name}: cannot be read ({error.strerror}); a readable YAML file is right") from error
    if len(content) > _MAX_BYTES:
        raise UserError(f"{name}: is larger than {_MAX_BYTES // 1024} KiB; a run's YAML file is right")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{name}, line {line}: is not UTF-8 text; a YAML file saved as UTF-8 is right") from error


def parse_document(text: str, name: str) -> Document:
    """`text` as a document; `name` is the file's name in messages. Raises UserError when it is not a YAML mapping, or has wrong values."""
    document, problems = parse_with_problems(text, name)
    raise_any(document, problems)
    return document


def parse_with_problems(text: str, name: str) -> tuple[Document, list[Problem]]:
    """`text` as a document (with WRONG in place of invalid values), and the problems found. Raises UserError when it is no YAML mapping."""
    tree, lines, problems = from_yaml(text, name)
    if tree is None:
        raise UserError(f"{name}: is empty; a mapping with name, source, target and method is right")
    if not isinstance(tree, dict):
        if problems:
            raise user_error(Document({}, name, lines), problems)
        given = tree.describe() if isinstance(tree, (FloatRange, IntRange, Choice)) else show(tree)
        raise UserError(f"{name}, line {lines['']}: {given} is not a mapping; a mapping with name, source, target and method is right")
    return Document(tree, name, lines), problems
