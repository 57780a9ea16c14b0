"""The console for all output."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.text import Text

__all__ = ["doing", "plain_console", "telling"]

SAID_AGAIN_SEC = 10.0
"""In a file or pipe the progress of one activity is a line at most this often."""


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


@contextmanager
def telling(console: Console) -> Iterator[Callable[[str], None]]:
    """Context that gives a function to tell of activities, `what` or `what: how far`: live in a terminal, as lines in a file or pipe."""
    if console.is_terminal:
        with console.status(Text("")) as status:
            yield lambda text: status.update(Text(text))
        return
    last: dict[str, float] = {}

    def said(text: str) -> None:
        what, now = text.partition(":")[0], time.monotonic()
        if now - last.get(what, -SAID_AGAIN_SEC) >= SAID_AGAIN_SEC:
            last[what] = now
            console.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True)

    yield said
