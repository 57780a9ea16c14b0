"""A worker's own faults and its machine's end, told apart by what Ray raises."""

from __future__ import annotations

import errno
import pickle

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfDiskError, OutOfMemoryError, OwnerDiedError, RayError, RayTaskError
from ray.train import WorkerGroupError

from fewshot_ray.cluster.lost_workers import NodeLostError, error_line, fault_of, kernel_kills
from fewshot_ray.errors import FullError, SavedAndEndedError, UnreachableError, UserError
from fewshot_ray.search.faults import Fault


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
EXIT = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: \
(1) The process is killed by SIGKILL by OOM killer due to high memory usage."
RAYS_WALL = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: f0d9) was \
22.4GB used / 23.54GB limit (0.951773)
OOM kill reason: Memory usage 24052000000B exceeded threshold of 24012684796B (95.0% of 25276510208B limit)
Object store memory usage: [- objects spillable: 0
"""
CASES = [
    (died(NODE), Fault.MACHINE_GONE, "ActorDiedError: The actor died because its node has died"),
    (died("", preempted=True), Fault.MACHINE_GONE, "ActorDiedError: The actor died unexpectedly before finishing this task."),
    (died(EXIT), Fault.OWN, "ActorDiedError: The actor died unexpectedly before finishing this task."),
    (NodeDiedError("gone"), Fault.MACHINE_GONE, "NodeDiedError: gone"),
    (OutOfMemoryError(RAYS_WALL), Fault.OUT_OF_MEMORY, "out of memory: on node 192.0.2.2, 22.4GB of 23.54GB used"),
    (RayError(RAYS_WALL), Fault.OUT_OF_MEMORY, "out of memory: on node 192.0.2.2, 22.4GB of 23.54GB used"),
    (died("Task was killed due to the node running low on memory."), Fault.OUT_OF_MEMORY, "out of memory: The actor died"),
    (raised(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")), Fault.OUT_OF_MEMORY, "out of memory: DefaultCPU"),
    (raised(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")), Fault.OWN, "RuntimeError: CUDA out of memory"),
    (raised(FullError("storage /x: cannot write a. b (No space left on device)")), Fault.FULL, "storage /x: cannot write a. b (No space"),
    (raised(OSError(errno.ENOSPC, "No space left on device")), Fault.FULL, "[Errno 28] No space left"),
    (OutOfDiskError("no room"), Fault.FULL, "no room The object cannot be created because the local object store is full"),
    (raised(UnreachableError("storage s3://x: no answer")), Fault.UNREACHABLE, "storage s3://x: no answer"),
    (WorkerGroupError("failed", {0: RuntimeError("Connection closed"), 1: raised(FullError("x: is full"))}), Fault.FULL, "x: is full"),
    (raised(UserError("train.lr: too large")), Fault.OWN, "UserError: train.lr: too large"),
    (raised(SavedAndEndedError("SIGTERM", 40)), Fault.MACHINE_GONE, "SavedAndEndedError: SIGTERM; saved at step 40"),
    (raised(MemoryError("no more\nat all")), Fault.OUT_OF_MEMORY, "out of memory: no more"),
    (raised(NodeLostError("1 of the cluster's nodes died")), Fault.MACHINE_GONE, "NodeLostError: 1 of the cluster's nodes died"),
    (
        WorkerGroupError("failed", {0: RuntimeError("Connection closed by peer"), 1: died(NODE)}),
        Fault.MACHINE_GONE,
        "ActorDiedError: The actor died because",
    ),
    (raised(WorkerGroupError("failed", {1: RuntimeError("CUDA error")})), Fault.OWN, "RuntimeError: CUDA error"),
    (OwnerDiedError("0" * 56, b"", ""), Fault.MACHINE_GONE, "OwnerDiedError"),
    (None, Fault.OWN, "unknown"),
]


@pytest.mark.parametrize(("error", "fault", "line"), CASES, ids=lambda value: type(value).__name__)
def test_told_apart(error: BaseException | None, fault: Fault, line: str) -> None:
    """Oracle: Ray's texts and classes, as seen when nodes, processes and functions end; always one line."""
    assert fault_of(error) is fault
    assert error_line(error).startswith(line)
    assert "\n" not in error_line(error)


def test_what_the_kernel_ended_for_memory() -> None:
    """Oracle: Ray says no more than that the process is gone; the kernel's own count says why. A fault of the trial's own stays one."""
    assert fault_of(died(EXIT), kernel_kills=1) is Fault.OUT_OF_MEMORY
    assert error_line(died(EXIT), Fault.OUT_OF_MEMORY) == "out of memory: the system ended the worker"
    assert fault_of(raised(RuntimeError("CUDA error")), kernel_kills=1) is Fault.OWN
    assert kernel_kills() >= 0


def test_it_is_still_itself_on_another_machine() -> None:
    """Oracle: what Ray does to it on its way; how it reads stays."""
    error = pickle.loads(pickle.dumps(SavedAndEndedError("stopped by the search", 40)))
    assert str(error) == "stopped by the search; saved at step 40"
