"""The console for all output."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.text import Text

__all__ = ["doing", "plain_console"]


def plain_console(file: IO[str] | None = None, *, width: int | None = None) -> Console:
    """A console that prints text unchanged: no markup (`[wip]` in a path), no emoji codes (`:cat:`), no highlighted numbers."""
    return Console(file=file, width=width, markup=False, emoji=False, highlight=False)


@contextmanager
def doing(console: Console, what: str) -> Iterator[None]:
    """Context that shows an activity: live in a terminal, as a line with the time in a file or pipe."""
    if not console.is_terminal:
        console.print(f"{time.strftime('%H:%M:%S')} {what}", soft_wrap=True)
        yield
        return
    with console.status(Text(what)):
        yield
