"""Seconds and bytes of a piece of work on a device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MIB = 2**20


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


@dataclass(frozen=True)
class Added:
    """Bytes of tensors on a device."""

    most: int
    """At once while the work ran, over those before it."""
    kept: int
    """Left at its end, its result among them."""


def added_bytes(work: Callable[[], Any], device: torch.device) -> Added:
    """What `work` allocates.

    On a CPU by the profiler's record of every allocation and release. Releases of what was there before are not in it: on a CPU
    `work` should begin without gradients.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        added = Added(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = work()
        now = most = 0
        records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        for record in sorted(records, key=lambda event: event.start_ns()):
            now += record.nbytes()
            most = max(most, now)
        added = Added(most, now)
    del result
    return added


def live_bytes(device: torch.device) -> int:
    """Of all tensors on the device: on a CPU of those that Python knows, which without graphs and gradients is all."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.device.type == "cpu"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
