"""The console that everything is printed on."""

from __future__ import annotations

from typing import IO

from rich.console import Console

__all__ = ["plain_console"]


def plain_console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """Prints text as it is: `[wip]` in a path is no style, `:cat:` no picture, and numbers have no colour of their own."""
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)
