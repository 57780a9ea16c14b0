"""Who hears of an end: everybody of the sweep's, a trial's workers of their own."""

from __future__ import annotations

import asyncio

from fewshot_ray.cluster.ending import EVERYBODY, STOPPED, Messenger, Notice


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


def test_the_first_reason_counts() -> None:
    """Oracle: a trial that is stopped while its machine goes is stopped."""
    notice = Notice()
    assert notice() is None
    notice.give(STOPPED)
    notice.give("SIGTERM")
    assert notice() == STOPPED
