"""A trial inside Ray: one worker in Tune's own reused actor, several through Ray Train. Both run the same trial code."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import ray.train
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import WorkerCallback
from ray.tune.integration.ray_train import TuneReportCallback

from fewshot_ray.cluster.ending import NOTICE, STOPPED, sigterm_gives_notice
from fewshot_ray.cluster.jobs import Job
from fewshot_ray.cluster.losses import nodes_watched
from fewshot_ray.errors import UserError
from fewshot_ray.patience import LONG_PATIENCE_SEC, set_patience
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import NonFiniteLossError
from fewshot_ray.trial.compose import compose
from fewshot_ray.trial.materials import Materials, pick_device
from fewshot_ray.trial.trial import SavedAndEndedError, Trial

ROW = "row"
PROBLEM = "problem"


def trial_results(config: dict[str, Any], *, group: Group | None = None) -> Iterator[dict[str, Any]]:
    """What a worker reports: a row an evaluation, the last with `done`; or the problem that no retry would solve.

    Raises SavedAndEndedError where the sweep or the machine is to end.
    """
    set_patience(LONG_PATIENCE_SEC)
    with ExitStack() as stack:
        yield from _trial_results(config, group, stack)


def _trial_results(config: dict[str, Any], group: Group | None, stack: ExitStack) -> Iterator[dict[str, Any]]:
    job = Job.from_json(config["job"])
    try:
        spec = compose(Document(job.tree, job.id), seed=job.seed, refit_steps=job.refit_steps)
        resources = spec.file.resources
        torch.set_num_threads(max(1, int(resources.cpus_per_worker)))
        device = pick_device(resources.gpus_per_worker)
        folder = Folder(config["folder"])
        group = group or Group()
        problem = group.first_of(_unreadable(Materials(spec, folder / "cache", device)))
        if problem is not None:
            raise UserError(problem)
        if (reason := group.first_of(NOTICE())) is not None:
            raise SavedAndEndedError(reason)
        trial = Trial(spec, folder / "trials" / job.id, folder / "cache", device=device, group=group, told_to_end=NOTICE)
        stack.enter_context(sigterm_gives_notice(lambda: trial.busy))
        for evaluation in trial.evaluations():
            yield {ROW: json.dumps(asdict(evaluation)), "done": evaluation.step >= job.last_step}
    except (UserError, NonFiniteLossError) as error:
        yield {PROBLEM: str(error), "done": True}


def _unreadable(materials: Materials) -> str | None:
    """Why this worker can't read the model or the images; another node may not have them."""
    try:
        _ = materials.source_backbone, materials.folds
    except UserError as error:
        return str(error)
    return None


class TrialActor(tune.Trainable):
    """One-worker trials, one after another in the same process: a warm start costs no import and no start of a process."""

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial."""
        NOTICE.listen(config["messenger"])
        self._results = trial_results(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._results = trial_results(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Up to the next evaluation."""
        return next(self._results)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The trial keeps its own checkpoints; Tune's are never used."""


class SigtermGivesNotice(WorkerCallback):
    """For Ray Train's workers, which train outside of their main thread, the only one that may set handlers."""

    def after_init_train_context(self) -> None:
        """Called on a worker's main thread before it trains."""
        signal.signal(signal.SIGTERM, lambda number, frame: NOTICE.give("SIGTERM"))


def _worker(config: dict[str, Any]) -> None:
    NOTICE.listen(config["messenger"], Job.from_json(config["job"]).id)
    try:
        for result in trial_results(config, group=Group()):
            # Without `done`: Tune would take the driver function away before Train has ended.
            ray.train.report({key: value for key, value in result.items() if key != "done"})
    except SavedAndEndedError as ended:
        if ended.reason != STOPPED:
            raise


def run_with_workers(config: dict[str, Any]) -> None:
    """A trial of several workers: Tune's driver function, which starts Ray Train's workers and waits for them.

    There are `resources.workers` of them, or as many as the cluster's nodes hold just now and `resources.min_workers` at least: a trial
    that lost a node goes on with the others, and Ray Train starts its workers anew when more would fit. Whatever else fails is raised:
    the sweep counts it, and Tune calls this again.
    """
    job = Job.from_json(config["job"])
    resources = compose(Document(job.tree, job.id), seed=job.seed).file.resources
    per_worker = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        per_worker["GPU"] = resources.gpus_per_worker
    elastic = (resources.min_workers, resources.workers)
    trainer = TorchTrainer(
        _worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=elastic if elastic[0] < elastic[1] else resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            name=f"{job.id}-{os.getpid()}",
            storage_path=config["scratch"],
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            callbacks=[TuneReportCallback(), SigtermGivesNotice()],
        ),
    )
    with nodes_watched():
        trainer.fit()


@ray.remote
def build_stages(config: dict[str, Any]) -> str | None:
    """Compute what the trials of a sweep share, before any starts; the problem where the user can solve it."""
    set_patience(LONG_PATIENCE_SEC)
    try:
        spec = compose(Document(config["tree"], "stages"))
        torch.set_num_threads(max(1, int(spec.file.resources.cpus_per_worker)))
        Materials(spec, Folder(config["folder"]) / "cache", pick_device(spec.file.resources.gpus_per_worker)).build_stages()
    except UserError as error:
        return str(error)
    return None
