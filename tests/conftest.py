"""Two workers of one process group, started once for all tests that need them."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

SIZE = 2
LONGEST_FIRST = ("test_chaos", "test_real_images", "test_launch", "test_interrupts", "test_driver", "test_nodes", "test_kill_resume")
"""Files that start a Ray, those that take longest: two processes that take file by file then end at about the same time. Those of
tests/cluster stay together, as they share a Ray."""


def pytest_configure() -> None:
    """Ctrl-C reaches what the tests start: what a shell runs in the background ignores it, and so would all that this starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that start a Ray, in the order of `LONGEST_FIRST`."""
    order = {name: number for number, name in enumerate(LONGEST_FIRST)}
    last = len(order)
    items.sort(key=lambda item: order.get(item.path.stem, last) if item.get_closest_marker("ray") else last)


class Workers:
    """Runs a function on every worker at once; the workers share a gloo group on the loopback interface."""

    def __init__(self, folder: Path) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(SIZE):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, f"file://{folder}/store", there), daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)`'s result on every worker; it must be at the top of a module."""
        for pipe in self.pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            assert pipe.poll(300), f"worker {rank} does not answer"
            answers.append(pipe.recv())
        problems = [problem for problem, _ in answers if problem]
        assert not problems, problems[0]
        return [result for _, result in answers]

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, store: str, pipe: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(("", function(*args)))
        except BaseException:  # whatever it was, the test that asked reports it
            pipe.send((traceback.format_exc(), None))


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """See `Workers`."""
    running = Workers(tmp_path_factory.mktemp("workers"))
    yield running
    running.stop()
