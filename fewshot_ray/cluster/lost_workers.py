"""Finds out why a trial's worker was lost: by a fault of the trial, of its machine, or of a place."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfDiskError,
    OutOfMemoryError,
    OwnerDiedError,
    RayActorError,
    RayError,
)
from ray.train import PreemptionError

from fewshot_ray.errors import FullError, SavedAndEndedError, UnreachableError
from fewshot_ray.patience import is_full
from fewshot_ray.search.faults import Fault

ANSWER_SEC = 3.0
NODE_DEATH_SEC = 35.0
"""Time after which Ray, by default, reports a node as dead."""


class NodeLostError(Exception):
    """A node of the cluster died while a trial's workers failed."""


_MACHINE_ERRORS = (NodeDiedError, OwnerDiedError, PreemptionError, SavedAndEndedError, NodeLostError)
_MACHINE_WORDS = ("node has died", "node died", "node has crashed", "node was terminated", "node is dead")
"""Texts of Ray's errors where an actor died with its node, for which it has no class."""
_MEMORY_WORDS = ("running low on memory", "OOM kill reason", "can't allocate memory", "Cannot allocate memory")
"""Texts of errors by Ray, PyTorch's allocator and the system. Not "OOM killer": Ray names it as a possible cause of every sudden end."""


@contextmanager
def nodes_watched() -> Iterator[None]:
    """Context for the training of several workers, which fails as a whole. Raises NodeLostError where the node of one died.

    The other workers fail seconds before Ray reports the node; so where a node doesn't answer, that report is waited for.
    """
    before = _nodes_alive()
    try:
        yield
    except Exception as error:
        ends_sec = time.monotonic() + (0.0 if all(map(_answers, before.values())) else NODE_DEATH_SEC)
        while not (gone := before.keys() - _nodes_alive().keys()) and time.monotonic() < ends_sec:
            time.sleep(0.5)
        if gone:
            raise NodeLostError(f"{len(gone)} of the cluster's nodes died") from error
        raise


def _nodes_alive() -> dict[str, tuple[str, int]]:
    """Address and port of the raylets of all nodes that are up, by node id."""
    return {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes() if node["Alive"]}


def _answers(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=ANSWER_SEC).close()
    except OSError:
        return False
    return True


def fault_of(error: BaseException | None, *, kernel_kills: int = 0) -> Fault:
    """The kind of fault; for several workers the machine's if any was lost to it, since the others fail with that one.

    `kernel_kills`: processes that this machine's kernel has killed since the last call for lack of memory, which Ray doesn't report.
    """
    found = list(causes(error))
    if any(map(_is_of_a_full_disk, found)):
        return Fault.FULL
    if any(isinstance(cause, UnreachableError) for cause in found):
        return Fault.UNREACHABLE
    if any(map(_is_out_of_memory, found)) or (kernel_kills > 0 and any(isinstance(cause, ActorDiedError) for cause in found)):
        return Fault.OUT_OF_MEMORY
    return Fault.MACHINE_GONE if any(map(_is_of_the_machine, found)) else Fault.OWN


def kernel_kills() -> int:
    """Number of processes that this machine's kernel has killed for lack of memory; 0 where the system doesn't tell."""
    with suppress(OSError):
        counts = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    return 0


def error_line(error: BaseException | None, fault: Fault | None = None) -> str:
    """The error in one line; `fault` where it is known better than from the error."""
    fault = fault or fault_of(error)
    found = list(causes(error))
    if fault is Fault.OUT_OF_MEMORY:
        return _memory_line(found)
    if fault in (Fault.FULL, Fault.UNREACHABLE):
        of_places = [cause for cause in found if isinstance(cause, UnreachableError) or _is_of_a_full_disk(cause)]
        return " ".join(str(of_places[-1]).split())
    if error is None:
        return "unknown"
    # The innermost cause, or the machine's fault with one of several workers.
    cause = ([cause for cause in found if _is_of_the_machine(cause)] or found)[-1]
    lines = [line.strip() for line in str(cause).strip().splitlines()]
    telling = next((line for line in lines if _has_machine_words(line)), next(iter(lines), ""))
    return f"{type(cause).__name__}: {telling.split('. ')[0]}"


def _memory_line(found: Sequence[BaseException]) -> str:
    """The node and its memory use, from Ray's text of forty lines."""
    text = next((str(cause) for cause in reversed(found) if _is_out_of_memory(cause)), "the system ended the worker")
    node = re.search(r"\(IP: ([^,)]+).*?was (\S+) used / (\S+) limit", text)
    said = f"on node {node[1]}, {node[2]} of {node[3]} used" if node else next(iter(text.strip().splitlines()), "").split(". ")[0]
    return f"out of memory{f': {said}' if said else ''}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, including those wrapped by Ray (errors of remote calls) and Ray Train (errors of workers)."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [getattr(one, "cause", None), *getattr(one, "worker_failures", {}).values(), one.__cause__]


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, _MACHINE_ERRORS) or (isinstance(error, RayActorError) and error.preempted):
        return True
    if isinstance(error, ActorUnavailableError):  # raised before Ray knows whether the process or the node is gone
        return not all(map(_answers, _nodes_alive().values()))
    return isinstance(error, RayActorError) and _has_machine_words(str(error))


def _is_of_a_full_disk(error: BaseException) -> bool:
    return isinstance(error, (FullError, OutOfDiskError)) or is_full(error)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine's memory ran out; a GPU's is the trial's own fault."""
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, (RayError, RuntimeError, OSError)) and any(words in str(error) for words in _MEMORY_WORDS)


def _has_machine_words(text: str) -> bool:
    return any(words in text for words in _MACHINE_WORDS)
