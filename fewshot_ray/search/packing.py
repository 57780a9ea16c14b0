"""How many trials share a GPU, or a machine's memory, by the memory that trials have taken. Uses no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.sections import ResourcesSpec

MARGIN = 1.2
"""Factor on the largest memory that was measured: further trials may take a little more."""
MOST_ON_A_GPU = 8
"""Trials on a GPU: its kernels run one process at a time, so more don't end sooner."""
FRACTIONS = 10_000
"""Ray counts a GPU in so many parts."""


@dataclass(frozen=True)
class Part:
    """What one trial's worker reserves."""

    cpus: float
    gpus: float
    memory_bytes: int = 0
    """Of the machine; 0 reserves none."""
    gpu_context_bytes: int = 0
    """What a process takes of a GPU besides its own allocations; 0 where it wasn't measured."""

    @property
    def shares_gpu(self) -> bool:
        """Whether other trials may run on the same GPU."""
        return 0 < self.gpus < 1


class Packing:
    """The part of the next trial, and how many run at the same time.

    With `gpus_per_worker: auto` trials have a whole GPU until one of them has been evaluated; then as many share one as the largest memory
    that was measured allows. With `cpus_per_worker: auto` one trial runs until it has been evaluated; then one a core, as far as the
    machines' memory holds them. In all other cases the parts are the file's.
    """

    def __init__(self, resources: ResourcesSpec) -> None:
        self.given = resources
        self.most_memory_bytes: int | None = None
        """The memory of the largest machine, as Ray counts it; None where it isn't known, and then it isn't reserved."""
        self._gpu_peak = self._gpu_context = self._host_peak = 0
        self._gpu_total: int | None = None

    @property
    def is_auto(self) -> bool:
        """Whether it depends on what is measured."""
        return "auto" in (self.given.gpus_per_worker, self.given.cpus_per_worker)

    def learn(self, memory: Mapping[str, int]) -> str | None:
        """Take the memory of an evaluated trial into account; returns a line for the user where another number runs from now on."""
        before = self._state()
        self._host_peak = max(self._host_peak, memory.get("host_peak", 0))
        self._gpu_peak = max(self._gpu_peak, memory.get("gpu_peak", 0))
        self._gpu_context = max(self._gpu_context, memory.get("gpu_context", 0))
        if total := memory.get("gpu_total"):
            self._gpu_total = min(total, self._gpu_total or total)
        return self._described() if self.is_auto and self._state() != before else None

    @property
    def on_a_gpu(self) -> int:
        """Number of trials that share a GPU; 1 also where there is none."""
        if self.given.gpus_per_worker != "auto":
            return int(1 / self.given.gpus + 1e-9) if 0 < self.given.gpus < 1 else 1
        if not (self._gpu_peak and self._gpu_total):
            return 1
        fit = int(self._gpu_total / (self._gpu_peak * MARGIN + self._gpu_context))
        return min(max(fit, 1), MOST_ON_A_GPU)

    @property
    def waits(self) -> bool:
        """Whether one trial runs until its memory is known."""
        return self.given.cpus_per_worker == "auto" and self.given.gpus == 0 and not self._host_peak

    def part(self, *, alone: bool = False) -> Part:
        """The part of the next trial; with `alone` a whole GPU in place of a fraction."""
        given, gpus = self.given, self.given.gpus
        if given.gpus_per_worker == "auto":
            gpus = math.floor(FRACTIONS / self.on_a_gpu) / FRACTIONS
        if alone and 0 < gpus < 1:
            gpus = 1.0
        return Part(given.cpus, gpus, self._memory(), self._gpu_context)

    def at_once(self, fit: int, whole: int) -> int:
        """Number of trials that run at the same time: `fit` with this part; `whole` of those that run now have a GPU of their own."""
        if self.waits:
            return 1
        return max(1, fit - (self.on_a_gpu - 1) * whole)

    def _memory(self) -> int:
        if self.given.cpus_per_worker != "auto" or self.given.gpus > 0 or self.most_memory_bytes is None:
            return 0
        return min(math.ceil(self._host_peak * MARGIN), self.most_memory_bytes)

    def _state(self) -> tuple[int, bool]:
        return self.on_a_gpu, self.waits

    def _described(self) -> str:
        if self.given.gpus > 0:
            took, has = (f"{number / 1e9:.3g} GB" for number in (self._gpu_peak, self._gpu_total or 0))
            return f"a trial took {took} of a GPU with {has} at most: from now on {self.on_a_gpu} share one"
        return f"a trial took {self._host_peak / 1e9:.3g} GB of memory at most: from now on as many run as there are cores and memory for"


def learn_from(folder: SweepFolder, packing: Packing) -> None:
    """Take the evaluations on record into account, where the parts depend on them."""
    if packing.is_auto:
        for record in folder.trials():
            for row in folder.rows(record.id):
                packing.learn(row.memory)


def auto_lines(resources: ResourcesSpec) -> list[str]:
    """What `auto` will do, in words."""
    lines = []
    if resources.gpus_per_worker == "auto":
        lines.append(
            "resources.gpus_per_worker: auto: a whole GPU for each trial, until one has been evaluated; then as many share one as the "
            f"measured memory allows ({MOST_ON_A_GPU} at most)"
        )
    if resources.cpus_per_worker == "auto":
        alone = "" if resources.gpus > 0 else ", one trial until it has been evaluated; then as many as there are cores and memory for"
        lines.append(f"resources.cpus_per_worker: auto: a core for each trial{alone}")
    return lines
