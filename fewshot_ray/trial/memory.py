"""The memory that a trial's process has taken at its peak, and its part of a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import torch

CONTEXT_BYTES = 600_000_000
"""What CUDA takes of a GPU for a process beside PyTorch's allocator, where it wasn't measured."""


def peak_memory(device: torch.device, *, alone: bool) -> Mapping[str, int]:
    """Bytes: `host_peak`, and of a GPU `gpu_peak` (reserved by PyTorch) and `gpu_total`; `gpu_context` where the process is `alone` on it.

    `gpu_context` is what is taken besides: CUDA's own for this process, and other programs' memory.
    """
    memory = {"host_peak": host_peak()}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory |= {"gpu_peak": torch.cuda.max_memory_reserved(device), "gpu_total": total}
        if alone:
            memory["gpu_context"] = max(0, total - free - torch.cuda.memory_reserved(device))
    return memory


def host_peak() -> int:
    """The largest resident memory of this process so far, without mapped files, which processes share; its memory now where not known."""
    with suppress(OSError, KeyError):
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        peak, files = (int(fields[name].split()[0]) for name in ("VmHWM", "RssFile"))
        return 1024 * (peak - files)
    return int(psutil.Process().memory_info().rss)


def measure_from_now(device: torch.device) -> None:
    """Forget the peak so far: finding a micro-batch that fits has tried what doesn't."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def keep_to_part(device: torch.device, gpus: float, context_bytes: int) -> None:
    """Let PyTorch reserve no more of the GPU than this process's part, less what CUDA takes besides; of a whole GPU all there is."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(allowed(gpus, torch.cuda.mem_get_info(device)[1], context_bytes), device)


def allowed(gpus: float, total_bytes: int, context_bytes: int) -> float:
    """The share in (0, 1] of a GPU's memory that PyTorch may reserve with `gpus` of it."""
    if gpus >= 1:
        return 1.0
    return max(gpus - (context_bytes or CONTEXT_BYTES) / total_bytes, gpus / 2)
