"""Runs a trial in Ray with one worker, in Tune's reused actor; `workers.py` runs it with several."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import ray.train
import torch
from ray import tune

from fewshot_ray.cluster import light_imports  # noqa: F401 (first)
from fewshot_ray.cluster.activities import teller
from fewshot_ray.cluster.ending import NOTICE, sigterm_gives_notice
from fewshot_ray.errors import SavedAndEndedError, UserError
from fewshot_ray.patience import LONG_PATIENCE_SEC, fault_of_the_place, set_patience
from fewshot_ray.search.job import Job
from fewshot_ray.search.packing import Part
from fewshot_ray.search.sweep_folder import SOURCE
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import NonFiniteLossError
from fewshot_ray.training.memory import REMEDIES, GpuMemoryError
from fewshot_ray.trial.activity import Activity
from fewshot_ray.trial.compiling import compiling
from fewshot_ray.trial.compose import compose
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.materials import Materials, pick_device
from fewshot_ray.trial.memory import keep_to_part, peak_memory
from fewshot_ray.trial.source import measure_source
from fewshot_ray.trial.trial import Trial

ROW = "row"
PROBLEM = "problem"
BY_VALUES = "by_values"
"""Whether the problem comes of the trial's values."""
GPU_MEMORY = "gpu_memory"
"""Whether the problem is that the GPU's memory, or the trial's part of it, is too small."""
REMARKS = "remarks"
"""Lines for the user about what was done since the row before."""


def trial_results(config: dict[str, Any], *, group: Group | None = None) -> Generator[dict[str, Any], None, None]:
    """Run a trial; yields a row per evaluation, the last with `done`, or the problem where no retry would help.

    Raises SavedAndEndedError where the sweep or the machine is to end, FullError and UnreachableError where a place is at fault.
    """
    set_patience(LONG_PATIENCE_SEC)
    with ExitStack() as stack:
        yield from _trial_results(config, group, stack)


def _trial_results(config: dict[str, Any], group: Group | None, stack: ExitStack) -> Iterator[dict[str, Any]]:
    job = Job.from_json(config["job"])
    try:
        spec = compose(Document(job.tree, job.id), seed=job.seed, refit_steps=job.refit_steps)
        resources = spec.file.resources
        torch.set_num_threads(max(1, int(resources.cpus)))
        device, part = pick_device(resources.gpus), part_of(config)
        keep_to_part(device, part.gpus, part.gpu_context_bytes)
        folder = Folder(config["folder"])
        group = group or Group()
        tell = teller(config.get("messenger") if group.rank == 0 else None, job.id)
        tell(Activity("loading model and images"))
        problem = group.first_of(_unreadable(materials_of(spec, folder / "cache", device)))
        if problem is not None:
            yield {PROBLEM: problem, BY_VALUES: False, "done": True}
            return
        if (reason := group.first_of(NOTICE())) is not None:
            raise SavedAndEndedError(reason)
        trial = Trial(
            spec,
            folder / "trials" / job.id,
            folder / "cache",
            device=device,
            group=group,
            last_step=job.last_step,
            told_to_end=NOTICE,
            tell=tell,
            read_memory=lambda: peak_memory(device, alone=not part.shares_gpu),
        )
        stack.enter_context(sigterm_gives_notice(lambda: trial.busy))
        with compiling():
            for evaluation in trial.evaluations():
                remarks = json.dumps(trial.take_remarks())
                yield {ROW: json.dumps(asdict(evaluation)), REMARKS: remarks, "done": evaluation.step >= job.last_step}
    except NonFiniteLossError as error:
        yield {PROBLEM: str(error), BY_VALUES: True, "done": True}
    except GpuMemoryError as error:
        yield _too_small(str(error), config)
    except torch.OutOfMemoryError as error:
        if group is not None and group.size > 1:  # the others don't know: Ray Train ends them
            raise
        yield _too_small(f"the GPU's memory ran out ({str(error).split('. ')[0]}); {REMEDIES}", config)
    except UserError as error:
        if (fault := fault_of_the_place(error)) is not None:
            raise fault from None
        yield {PROBLEM: str(error), BY_VALUES: True, "done": True}


def part_of(config: Mapping[str, Any]) -> Part:
    """What each worker of the trial has reserved."""
    return Part(**config["part"])


def reserved(config: Mapping[str, Any]) -> tune.PlacementGroupFactory:
    """What Ray reserves for a trial of one worker."""
    part = part_of(config)
    kinds = {"CPU": part.cpus, "GPU": part.gpus, "memory": part.memory_bytes}
    return tune.PlacementGroupFactory([{kind: amount for kind, amount in kinds.items() if amount > 0}])


def _too_small(problem: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The problem of a GPU's memory; by the trial's values where no other process shares the GPU."""
    return {PROBLEM: problem, BY_VALUES: not part_of(config).shares_gpu, GPU_MEMORY: True, "done": True}


def _unreadable(materials: Materials) -> str | None:
    """The problem where this worker can't read model or images, which may exist only on other nodes; else None."""
    try:
        _ = materials.source_hash, materials.folds
    except UserError as error:
        if fault_of_the_place(error) is not None:
            raise
        return str(error)
    return None


class TrialActor(tune.Trainable):
    """Runs trials with one worker, one after the other in the same process, so that only the first one imports libraries."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start a trial."""
        NOTICE.listen(config["messenger"])
        self._results = trial_results(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in the same process."""
        self._results = trial_results(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation; returns its row."""
        return next(self._results)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the trial writes its own checkpoints."""


@ray.remote
def build_stages(config: dict[str, Any]) -> str | None:
    """Compute the stages that all trials of a sweep read, before any starts; returns a problem that the user can solve, or None."""
    set_patience(LONG_PATIENCE_SEC)
    try:
        spec = compose(Document(config["tree"], "stages"))
        torch.set_num_threads(max(1, int(spec.file.resources.cpus)))
        materials_of(spec, Folder(config["folder"]) / "cache", pick_device(spec.file.resources.gpus)).build_stages()
    except UserError as error:
        return str(error)
    return None


@ray.remote
def measured_source(config: dict[str, Any]) -> dict[str, str]:
    """Measure the source model as trials are measured, with its files below its own folder; returns the values, or a problem as above."""
    set_patience(LONG_PATIENCE_SEC)
    try:
        spec, folder = compose(Document(config["tree"], "source")), Folder(config["folder"])
        torch.set_num_threads(max(1, int(spec.file.resources.cpus)))
        device = pick_device(spec.file.resources.gpus)
        found = measure_source(spec, folder / "trials" / SOURCE, folder / "cache", device)
    except UserError as error:
        return {PROBLEM: str(error)}
    by_image = found.by_image(spec.file.search.objectives)
    return {ROW: json.dumps({"metrics": found.metrics, "image_losses": found.image_losses, "by_image": by_image})}
