"""How the workers of a sweep hear that they are to end: from the driver, or by the signal a machine sends before it goes.

Imports neither torch nor the trial: the driver's messenger is a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

EVERYBODY = ""
"""Whom a message is for that ends the sweep; others are for the workers of one trial, by its id."""
STOPPED = "stopped by the search"


class Messenger:
    """Tells the workers that wait for it when they are to end, and nothing before that."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._news = asyncio.Condition()

    async def say(self, trial_id: str, reason: str) -> None:
        """A trial's workers, or EVERYBODY, are to end."""
        async with self._news:
            self._said.setdefault(trial_id, reason)
            self._news.notify_all()

    async def wait(self, trial_id: str) -> str:
        """Why the workers of a trial are to end, once they are."""
        async with self._news:
            await self._news.wait_for(lambda: {trial_id, EVERYBODY} & self._said.keys())
            return self._said.get(EVERYBODY) or self._said[trial_id]


def start_messenger() -> Any:
    """A messenger on the driver's own machine, which ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Messenger).remote()


class Notice:
    """Why this process is to end soon: calling it gives the reason, or None as long as nobody has told it to."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def __call__(self) -> str | None:
        return self._reason

    def give(self, reason: str) -> None:
        """The process is to end; the first reason counts."""
        self._reason = self._reason or reason

    def listen(self, messenger: Any, trial_id: str = EVERYBODY) -> None:
        """Hear of the sweep's end, or of a trial's, in a thread of its own."""
        threading.Thread(target=self._listen, args=(messenger, trial_id), name="ending", daemon=True).start()

    def _listen(self, messenger: Any, trial_id: str) -> None:
        with suppress(Exception):  # the driver is gone, and this process soon
            self.give(ray.get(messenger.wait.remote(trial_id)))


NOTICE = Notice()
"""Of this process."""


@contextmanager
def sigterm_gives_notice(busy: Callable[[], bool]) -> Iterator[None]:
    """Within the block a SIGTERM gives notice while `busy()`, and ends the process at once where nobody would look at it.

    Outside of the main thread, which alone may set handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def on_sigterm(number: int, frame: FrameType | None) -> None:
        if busy():
            NOTICE.give("SIGTERM")
        else:
            signal.signal(signal.SIGTERM, before)
            os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
