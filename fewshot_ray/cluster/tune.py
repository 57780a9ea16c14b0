"""Connects the sweep's state machine to Tune: a searcher that asks it for jobs, a scheduler that passes results to it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from fewshot_ray.cluster.actors import BY_VALUES, GPU_MEMORY, PROBLEM, REMARKS, ROW
from fewshot_ray.cluster.ending import EVERYBODY, STOPPED
from fewshot_ray.cluster.lost_workers import error_line, fault_of, kernel_kills
from fewshot_ray.cluster.ray_log import RAY_LOGGER
from fewshot_ray.search.job import Job
from fewshot_ray.search.sweep import Next, Sweep
from fewshot_ray.search.sweep_folder import EvaluationRow

WATCH_SEC = 2.0


class RayLost(BaseException):
    """Ray's process on the driver's machine is gone. A BaseException, so that Tune neither continues nor cleans up."""

    progressed = False
    """Whether an evaluation was recorded before that."""


class _OfTheDriver:
    """Pickles as empty: Tune pickles searcher, scheduler and callbacks into its own state, but a sweep's state is its folder."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SweepSearcher(_OfTheDriver, Searcher):
    """Gives the sweep's jobs to Tune and tells the sweep when each has ended."""

    def __init__(self, sweep: Sweep, shared: dict[str, Any]) -> None:
        super().__init__(metric=None, mode=None)
        self.sweep = sweep
        self.shared = shared
        self.trial_ids: dict[str, str] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A job as a configuration; None to be asked again, FINISHED when the sweep is done."""
        job = self.sweep.next_job()
        if job is Next.DONE:
            return str(Searcher.FINISHED)
        if not isinstance(job, Job):
            return None
        self.trial_ids[trial_id] = job.id
        return {"id": job.id, "job": job.to_json(), "part": asdict(self.sweep.running[job.id].part), **self.shared}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called once per trial, after its last retry."""
        own = self.trial_ids.pop(trial_id, None)
        if own is not None:
            self.sweep.ended(own)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: the scheduler handles results."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep is resumed from its own folder, not from Tune's state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as in `save`."""


class SweepScheduler(_OfTheDriver, FIFOScheduler):
    """Passes every result to the sweep, and stops the trials that the sweep stops."""

    def __init__(self, sweep: Sweep, messenger: Any) -> None:
        super().__init__()
        self.sweep = sweep
        self.messenger = messenger
        self.kernel_kills = kernel_kills()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """One evaluation, or the problem that ended the trial."""
        if not self._record(trial, result):
            return str(TrialScheduler.CONTINUE)
        if self.sweep.file.resources.workers == 1:
            return str(TrialScheduler.STOP)
        # Ray Train's workers would outlive a stopped driver function, and keep their resources: so they are told to end.
        self.messenger.say.remote(_job_id(trial), STOPPED)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Called with a trial's last result instead of `on_trial_result`; for a stopped trial in addition to it.

        Tune keeps its trials, with each metric's latest values, until the sweep's end; the values are freed here.
        """
        self._record(trial, result)
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker was lost. Tune would restart the trial for ever, so `on_trial_add`, called next, decides."""
        error, job_id = _error(trial), _job_id(trial)
        if trial.status == Trial.PENDING:  # it is queued already: another report of the same loss
            return
        kills, before = kernel_kills(), self.kernel_kills
        self.kernel_kills = kills
        fault = fault_of(error, kernel_kills=kills - before)
        RAY_LOGGER.error("%s lost its worker: %s", job_id, error)
        self.sweep.lost(job_id, error_line(error, fault), fault)
        if self.sweep.halted is not None:
            self.messenger.say.remote(EVERYBODY, self.sweep.halted)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial was queued: a new one, or one whose worker was lost, which is stopped if it may not be restarted."""
        super().on_trial_add(tune_controller, trial)
        job_id = _job_id(trial)
        if job_id in self.sweep.running and not self.sweep.may_go_on(job_id):
            tune_controller.stop_trial(trial)

    def _record(self, trial: Any, result: dict[str, Any]) -> bool:
        """Pass a result to the sweep; returns whether the trial should stop."""
        job_id = _job_id(trial)
        if PROBLEM in result:
            by_values, gpu_memory = bool(result.get(BY_VALUES)), bool(result.get(GPU_MEMORY))
            self.sweep.failed(job_id, str(result[PROBLEM]), by_values=by_values, gpu_memory=gpu_memory)
            return True
        row = EvaluationRow(time=0.0, **json.loads(result[ROW]))
        return self.sweep.evaluated(job_id, row, json.loads(result[REMARKS]))


def _job_id(trial: Any) -> str:
    return str(trial.config["id"])


def _error(trial: Any) -> BaseException | None:
    """The error by which a trial's worker was lost. Tune's own function looks where the error isn't uploaded yet.

    For an OutOfMemoryError Tune keeps only the text. Each pickled error is read once and removed, so that it isn't taken for the next
    one's.
    """
    path = trial.pickled_error_file
    if path is not None and os.path.exists(path):
        with open(path, "rb") as file:
            error: BaseException = cloudpickle.load(file)
        os.unlink(path)
        return error
    text = _last_failure(trial.error_file)
    return None if text is None else RayError(text)


def _last_failure(path: str | None) -> str | None:
    """Tune's text of the last failure, without its heading."""
    if path is None or not os.path.exists(path):
        return None
    with open(path, errors="replace") as file:
        last = re.split(r"^Failure # \d+ \(occurred at .*\)\n", file.read(), flags=re.MULTILINE)[-1]
    return last.strip() or None


class Silent(TrialProgressCallback):
    """A progress callback that prints nothing, in place of Tune's."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """Nothing: the sweep reports it."""

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        """Nothing: the sweep reports it."""

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """Nothing: the sweep reports it."""


class Watch(_OfTheDriver, Callback):
    """Ends the sweep where Ray's process on this machine is gone, since Tune would wait for its workers for ever."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.looks: Sequence[Callable[[], None]] = ()
        """Called at every check, for further checks."""
        self._next_sec = 0.0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called several times per second; checks every WATCH_SEC. Raises RayLost."""
        if time.monotonic() >= self._next_sec:
            self._next_sec = time.monotonic() + WATCH_SEC
            self.check()
            for look in self.looks:
                look()

    def check(self) -> None:
        """Raise RayLost where this node isn't alive."""
        if not any(node["NodeID"] == self.node_id and node["Alive"] for node in ray.nodes()):
            raise RayLost
