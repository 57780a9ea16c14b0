"""Tells the workers of a sweep that they are to end: on the driver's word, or when their machine sends SIGTERM before it goes away.

The driver's messenger also takes what they are at.

Imports neither torch nor the trial: the driver's messenger is an actor in a process of its own.
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
"""The addressee of a message that ends the sweep; other messages go to the workers of one trial, by its id."""
STOPPED = "stopped by the search"


class Messenger:
    """An actor that workers wait on: it answers once they are to end. It also stores their activities for the driver."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._reported: dict[str, Any] = {}
        self._news = asyncio.Condition()

    async def say(self, trial_id: str, reason: str) -> None:
        """Tell the workers of a trial, or EVERYBODY, to end."""
        async with self._news:
            self._said.setdefault(trial_id, reason)
            self._news.notify_all()

    async def wait(self, trial_id: str) -> str:
        """Block until the workers of the trial are to end; returns why."""
        async with self._news:
            await self._news.wait_for(lambda: {trial_id, EVERYBODY} & self._said.keys())
            return self._said.get(EVERYBODY) or self._said[trial_id]

    async def report(self, trial_id: str, activity: Any) -> None:
        """Store the activity of a trial's worker."""
        self._reported[trial_id] = activity

    async def news(self) -> dict[str, Any]:
        """The latest activity of each trial with a new one since the last call."""
        reported, self._reported = self._reported, {}
        return reported


def start_messenger() -> Any:
    """Start a messenger on the driver's node; it ends with the driver."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Messenger).remote()


class Notice:
    """Whether this process has been told to end: a call returns the reason, or None."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def __call__(self) -> str | None:
        return self._reason

    def give(self, reason: str) -> None:
        """Record that the process is to end; the first reason is kept."""
        self._reason = self._reason or reason

    def listen(self, messenger: Any, trial_id: str = EVERYBODY) -> None:
        """Wait for the messenger in a background thread, for the sweep's end or a trial's."""
        threading.Thread(target=self._listen, args=(messenger, trial_id), name="ending", daemon=True).start()

    def _listen(self, messenger: Any, trial_id: str) -> None:
        with suppress(Exception):  # the driver is gone, and this process soon
            self.give(ray.get(messenger.wait.remote(trial_id)))


NOTICE = Notice()
"""The notice of this process."""


@contextmanager
def sigterm_gives_notice(busy: Callable[[], bool]) -> Iterator[None]:
    """Context in which SIGTERM gives notice while `busy()`, and otherwise ends the process at once, since nobody would read the notice.

    Has no effect outside of the main thread, which alone may set signal handlers.
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
