"""Writes checkpoints in the background, while training continues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import checkpoint_name, pack, saved_steps, write_checkpoint

Keep = Callable[[Sequence[int]], set[int]]


class CheckpointWriter:
    """Writes in a thread of its own, one checkpoint at a time: a step waits for the copy of the state, not for the disk."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copies: dict[str, Tensor] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self._pending is None or self._pending.done()

    def submit(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any], keep: Keep) -> None:
        """Copy the state and start writing it; afterwards the saved steps that `keep` doesn't name are removed.

        Waits for the previous checkpoint first. Raises UserError where that couldn't be written.
        """
        self.wait()
        self._copies = {name: self._copy(name, tensor.detach()) for name, tensor in tensors.items()}
        self._pending = self._thread.submit(self._write, step, self._copies, info, keep)

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        """Copy into the memory of the previous checkpoint: filling newly allocated memory takes several times as long."""
        copy = self._copies.get(name)
        if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return copy.copy_(tensor)

    def wait(self) -> None:
        """Block until everything is written. Raises UserError where something couldn't be."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Wait for the last checkpoint and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, step: int, tensors: Mapping[str, Tensor], info: Mapping[str, Any], keep: Keep) -> None:
        write_checkpoint(self.folder, step, pack(tensors, info))
        saved = saved_steps(self.folder)
        for old in set(saved) - keep(saved):
            self.folder.remove(checkpoint_name(old))
