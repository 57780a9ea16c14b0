"""What a trial's worker was lost to: a fault of its own, or its machine's end, which says nothing against the trial."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.exceptions import ActorUnavailableError, NodeDiedError, OwnerDiedError, RayActorError
from ray.train import PreemptionError

from fewshot_ray.errors import SavedAndEndedError

ANSWER_SEC = 3.0
NODE_DEATH_SEC = 35.0
"""After so long Ray says at its presets that a node is dead."""


class NodeLostError(Exception):
    """A node of the cluster died while a trial's workers failed."""


_MACHINE_ERRORS = (NodeDiedError, OwnerDiedError, PreemptionError, SavedAndEndedError, NodeLostError)
_MACHINE_WORDS = ("node has died", "node died", "node has crashed", "node was terminated", "node is dead")
"""Ray has no class for an actor that died with its node."""


@contextmanager
def nodes_watched() -> Iterator[None]:
    """Around the training of several workers, which can't go on without each other. Raises NodeLostError where one's node is gone.

    The workers that are left fail seconds before Ray knows of it: where a node doesn't answer, it is waited for what Ray says.
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
    """Where the nodes' raylets listen, by id."""
    return {node["NodeID"]: (node["NodeManagerAddress"], node["NodeManagerPort"]) for node in ray.nodes() if node["Alive"]}


def _answers(place: tuple[str, int]) -> bool:
    try:
        socket.create_connection(place, timeout=ANSWER_SEC).close()
    except OSError:
        return False
    return True


def of_the_machine(error: BaseException | None) -> bool:
    """Whether a machine went away, or told its workers that it would; one of several is enough, the others' workers fail with it."""
    return any(_is_of_the_machine(cause) for cause in causes(error))


def error_line(error: BaseException | None) -> str:
    """What happened, on one line."""
    if error is None:
        return "unknown"
    found = list(causes(error))
    # What it began with: the innermost, or what the machine did to one of several workers.
    cause = ([cause for cause in found if _is_of_the_machine(cause)] or found)[-1]
    lines = [line.strip() for line in str(cause).strip().splitlines()]
    telling = next((line for line in lines if _has_machine_words(line)), next(iter(lines), ""))
    return f"{type(cause).__name__}: {telling.split('. ')[0]}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what is wrapped in it: by Ray (what a remote call raised) and by Ray Train (what its workers did)."""
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
    if isinstance(error, ActorUnavailableError):  # raised before Ray knows whether it was the process or its node
        return not all(map(_answers, _nodes_alive().values()))
    return isinstance(error, RayActorError) and _has_machine_words(str(error))


def _has_machine_words(text: str) -> bool:
    return any(words in text for words in _MACHINE_WORDS)
