"""The console for all output."""

from __future__ import annotations

from typing import IO

from rich.console import Console

__all__ = ["plain_console"]


def plain_console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """A console that prints text unchanged: no markup (`[wip]` in a path), no emoji codes (`:cat:`), no highlighted numbers."""
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)
