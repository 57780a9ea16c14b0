"""The docstrings of the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fewshot_ray

PACKAGE = Path(fewshot_ray.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring: of the module, its classes and functions, and of their fields and constants."""
    for node in ast.walk(ast.parse(source)):
        for statement in getattr(node, "body", ()) if isinstance(getattr(node, "body", None), list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str):
                yield statement.lineno, " ".join(statement.value.value.split())


def only_refers(text: str) -> bool:
    """Whether a docstring is no more than "See ...", which leaves its reader to look elsewhere."""
    return text.lower().startswith("see ") or text == ""


def test_what_counts_as_only_referring() -> None:
    """Oracle: the forms that the package once had, and texts that say something."""
    lines = ['"""A module."""', "def f() -> None:", '    """See `g`."""', "class A:", "    x = 0", '    """See `B.x`; where asked for."""']
    source = "\n".join([*lines, "y = 1", '"""Seed of y."""'])
    assert [line for line, text in docstrings(source) if only_refers(text)] == [3, 6]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_say_the_thing_itself(module: Path) -> None:
    """Oracle: the rule for docstrings: the sentence that a reader needs, not only where to look for it."""
    assert [f"{module.name}:{line}: {text}" for line, text in docstrings(module.read_text()) if only_refers(text)] == []
