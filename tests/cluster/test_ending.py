"""Who hears of an end: everybody of the sweep's, a trial's workers of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
import ray

from fewshot_ray.cluster.activities import Activities, teller
from fewshot_ray.cluster.ending import EVERYBODY, STOPPED, Messenger, Notice, start_messenger
from fewshot_ray.trial.activity import Activity


def test_a_message_reaches_whom_it_is_for() -> None:
    """Oracle: those who wait for it, before and after it was said, and no others."""

    async def conversation() -> None:
        messenger = Messenger()
        waiting = {name: asyncio.ensure_future(messenger.wait(name)) for name in ("t0001", "t0002", EVERYBODY)}
        await asyncio.sleep(0)
        await messenger.say("t0001", STOPPED)
        assert await asyncio.wait_for(waiting["t0001"], 1) == STOPPED
        assert await asyncio.wait_for(messenger.wait("t0001"), 1) == STOPPED
        await asyncio.sleep(0.01)
        assert not waiting["t0002"].done()
        assert not waiting[EVERYBODY].done()
        await messenger.say(EVERYBODY, "Ctrl-C")
        assert await asyncio.wait_for(waiting["t0002"], 1) == "Ctrl-C"
        assert await asyncio.wait_for(waiting[EVERYBODY], 1) == "Ctrl-C"
        assert await asyncio.wait_for(messenger.wait("t0003"), 1) == "Ctrl-C"

    asyncio.run(conversation())


def test_what_trials_are_at_is_asked_for() -> None:
    """Oracle: by hand; the last word of each trial that has said something since."""

    async def conversation() -> None:
        messenger = Messenger()
        assert await messenger.news() == {}
        for trial_id, step in (("t0001", 5), ("t0002", 7), ("t0001", 9)):
            await messenger.report(trial_id, Activity("training", step, 1.0))
        assert await messenger.news() == {"t0001": ("training", 9, 1.0), "t0002": ("training", 7, 1.0)}
        assert await messenger.news() == {}

    asyncio.run(conversation())


@pytest.mark.ray
def test_the_driver_hears_of_it_without_waiting(local_ray: None) -> None:
    """Oracle: what a process of Ray's told; a messenger that is gone is no error."""
    heard: dict[str, Activity] = {}
    messenger = start_messenger()
    activities = Activities(messenger, heard.update)

    def look_until(condition: Callable[[], bool]) -> None:
        until_sec = time.monotonic() + 60
        while not condition() and time.monotonic() < until_sec:
            activities.look()
            time.sleep(0.05)

    ray.get(ray.remote(lambda: teller(messenger, "t0001")(Activity("training", 9, 2.5))).remote())
    look_until(lambda: bool(heard))
    assert heard == {"t0001": Activity("training", 9, 2.5)}
    ray.kill(messenger)
    began_sec = time.monotonic()
    look_until(lambda: time.monotonic() > began_sec + 1)
    assert len(heard) == 1


def test_the_first_reason_counts() -> None:
    """Oracle: a trial that is stopped while its machine goes is stopped."""
    notice = Notice()
    assert notice() is None
    notice.give(STOPPED)
    notice.give("SIGTERM")
    assert notice() == STOPPED
