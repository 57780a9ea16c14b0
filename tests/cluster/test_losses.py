"""A worker's own faults and its machine's end, told apart by what Ray raises."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, OwnerDiedError, RayError, RayTaskError
from ray.train import WorkerGroupError

from fewshot_ray.cluster.losses import NodeLostError, error_line, of_the_machine
from fewshot_ray.errors import SavedAndEndedError


def died(message: str, *, preempted: bool = False) -> ActorDiedError:
    """As Ray makes one of an actor's death."""
    error = ActorDiedError()
    error.error_msg = f"The actor died unexpectedly before finishing this task.\n\tclass_name: TrialActor\n{message}"
    error._preempted = preempted
    return error


def raised(cause: Exception) -> RayError:
    """As Ray hands on what a remote function raised."""
    error: RayError = RayTaskError("step", "Traceback: ...", cause).as_instanceof_cause()
    return error


NODE = "The actor died because its node has died. Node Id: 12ab"
EXIT = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: killed by SIGKILL."
CASES = [
    (died(NODE), True, "ActorDiedError: The actor died because its node has died"),
    (died("", preempted=True), True, "ActorDiedError: The actor died unexpectedly before finishing this task."),
    (died(EXIT), False, "ActorDiedError: The actor died unexpectedly before finishing this task."),
    (NodeDiedError("gone"), True, "NodeDiedError: gone"),
    (OutOfMemoryError("Task was killed due to the node running low on memory."), False, "OutOfMemoryError: Task was killed"),
    (raised(SavedAndEndedError("SIGTERM", 40)), True, "SavedAndEndedError: SIGTERM; saved at step 40"),
    (raised(MemoryError("no more\nat all")), False, "MemoryError: no more"),
    (raised(NodeLostError("1 of the cluster's nodes died")), True, "NodeLostError: 1 of the cluster's nodes died"),
    (
        WorkerGroupError("failed", {0: RuntimeError("Connection closed by peer"), 1: died(NODE)}),
        True,
        "ActorDiedError: The actor died because",
    ),
    (raised(WorkerGroupError("failed", {1: RuntimeError("CUDA error")})), False, "RuntimeError: CUDA error"),
    (OwnerDiedError("0" * 56, b"", ""), True, "OwnerDiedError"),
    (None, False, "unknown"),
]


@pytest.mark.parametrize(("error", "of_machine", "line"), CASES, ids=lambda value: type(value).__name__)
def test_told_apart(error: BaseException | None, of_machine: bool, line: str) -> None:
    """Oracle: Ray's texts and classes, as seen when nodes, processes and functions end; always one line."""
    assert of_the_machine(error) == of_machine
    assert error_line(error).startswith(line)
    assert "\n" not in error_line(error)


def test_it_is_still_itself_on_another_machine() -> None:
    """Oracle: what Ray does to it on its way; how it reads stays."""
    error = pickle.loads(pickle.dumps(SavedAndEndedError("stopped by the search", 40)))
    assert str(error) == "stopped by the search; saved at step 40"
