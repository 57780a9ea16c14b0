"""Fewer images at once where a GPU's memory runs out. Results are the same up to the order of floating-point sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

_LIBRARIES_WORDS = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Of cuBLAS and cuDNN, which allocate outside of PyTorch. Not "CUDA error: out of memory", which the lack of pinned host memory is too."""


def is_out_of_gpu_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory ran out, or this process's part of it; never the machine's memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _LIBRARIES_WORDS)


def release_gpu_memory() -> None:
    """Give the memory that PyTorch keeps for later back to the GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def in_parts(work: Callable[[Tensor], T], rows: Tensor, at_once: int) -> list[T]:
    """`work` of `rows` `[N, ...]`, at most `at_once` of them at a time: the results in order.

    Where the GPU's memory runs out the part is halved, and those after it are no larger. Raises the error of a single row.
    """
    done: list[T] = []
    first = 0
    while first < len(rows) or not done:  # of no rows, the work of none
        part = rows[first : first + at_once]
        try:
            done.append(work(part))
        except RuntimeError as error:
            if len(part) <= 1 or not is_out_of_gpu_memory(error):
                raise
        else:
            first += len(part)
            continue
        # Only here, where the error is gone: its traceback holds the tensors of the failed part.
        release_gpu_memory()
        at_once = math.ceil(len(part) / 2)
    return done
