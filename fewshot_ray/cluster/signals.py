"""Ends a sweep on SIGINT or SIGTERM: the first lets the trials save, the second ends it at once."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from fewshot_ray.cluster.ending import EVERYBODY
from fewshot_ray.search.sweep import Sweep


class Interrupted(KeyboardInterrupt):
    """The sweep was ended by a signal; it can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def signals_end(sweep: Sweep, messenger: Any) -> Iterator[list[int]]:
    """Context in which the first SIGINT or SIGTERM lets the trials save and end, and the second raises Interrupted; yields those received.

    Has no effect outside of the main thread, which alone may set signal handlers.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def close(name: str) -> None:
        sweep.progress.say(f"{name}: the trials save where they are, then the sweep ends; once more ends it at once")
        messenger.say.remote(EVERYBODY, f"the sweep was ended by {name}")

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it fails in its own cleanup, which this interrupts
            raise Interrupted(number)
        sweep.closing = True
        # In a thread, since the interrupted code may hold a lock.
        threading.Thread(target=close, args=("Ctrl-C" if number == signal.SIGINT else "SIGTERM",), daemon=True).start()

    try:
        for number in signals:
            signal.signal(number, on_signal)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
