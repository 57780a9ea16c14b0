"""What workers of a trial do together where the GPU memory of one of them runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fewshot_ray.errors import UserError
from fewshot_ray.models.memory import is_out_of_gpu_memory, release_gpu_memory
from fewshot_ray.training.group import Group

T = TypeVar("T")

REMEDIES = "a GPU with more memory, train.params: lora, train.precision: bf16, or a smaller model or resolution is right"
"""What the user can do about a GPU's memory that is too small."""


class GpuMemoryError(UserError):
    """The GPU's memory is too small for what a trial needs at least; raised on all of its workers."""


def attempt(group: Group, work: Callable[[], T]) -> T | None:
    """The result of work without collective operations; None, on every worker, where any worker's GPU memory ran out in it."""
    result, ran_out = None, False
    try:
        result = work()
    except RuntimeError as error:
        if not is_out_of_gpu_memory(error):
            raise
        ran_out = True
    return None if group.any(ran_out) else result


def together(group: Group, doing: str, work: Callable[[], T]) -> T:
    """The result of work without collective operations. Raises GpuMemoryError where any worker's GPU memory ran out in it."""
    result = attempt(group, work)
    if result is None:
        raise GpuMemoryError(f"the GPU's memory ran out {doing}, with one image at a time; {REMEDIES}")
    return result


def with_room(work: Callable[[], None], make_room: Callable[[], None]) -> None:
    """Do work of this worker alone; once more, after `make_room`, where the GPU's memory runs out. A failed one must change nothing."""
    try:
        work()
    except RuntimeError as error:
        if not is_out_of_gpu_memory(error):
            raise
    else:
        return
    make_room()  # only here, where the error is gone: its traceback holds tensors
    release_gpu_memory()
    work()
