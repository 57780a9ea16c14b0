"""`resources`: the hardware of one trial."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fewshot_ray.spec.sections.section import PositiveInt, Section


class ResourcesSpec(Section):
    """The hardware of one trial."""

    workers: PositiveInt = 1
    """Processes (ranks) that share a trial's batches."""

    min_workers: PositiveInt = 1
    """Minimum number of workers that a trial continues with after the loss of a node."""

    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = 0.0
    """GPUs per worker; with a fraction, workers share a GPU. 'auto': one, then the fraction that trials were measured to need."""

    cpus_per_worker: Literal["auto"] | Annotated[float, Field(gt=0)] = 1.0
    """CPU cores per worker. 'auto': one, and without GPUs no more trials at the same time than the measured memory of the first allows."""

    @property
    def gpus(self) -> float:
        """GPUs per worker of the first trials."""
        return 1.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def cpus(self) -> float:
        """CPU cores per worker."""
        return 1.0 if self.cpus_per_worker == "auto" else self.cpus_per_worker
