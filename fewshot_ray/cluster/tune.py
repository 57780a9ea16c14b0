"""The sweep's state machine as Tune sees it: a searcher that asks it for jobs, a scheduler that passes results to it."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from fewshot_ray.cluster.actors import PROBLEM, ROW
from fewshot_ray.cluster.ending import EVERYBODY, STOPPED
from fewshot_ray.cluster.jobs import Job
from fewshot_ray.cluster.losses import error_line, fault_of, kernel_kills
from fewshot_ray.cluster.ray_log import RAY_LOGGER
from fewshot_ray.cluster.sweep import Next, Sweep
from fewshot_ray.report.sweep_folder import EvaluationRow

WATCH_SEC = 2.0


class RayLost(BaseException):
    """Ray's process on the driver's machine is gone. As with KeyboardInterrupt, Tune should not try to go on or to clean up."""

    progressed = False
    """Whether an evaluation had been put on record before that."""


class _OfTheDriver:
    """Tune pickles its searcher, scheduler and callbacks into its own state; the sweep stays with the driver: its folder is its state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class SweepSearcher(_OfTheDriver, Searcher):
    """Hands the sweep's jobs to Tune and tells the sweep how each ended."""

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
        return {"id": job.id, "job": job.to_json(), **self.shared}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Called once a trial, after its last retry."""
        own = self.trial_ids.pop(trial_id, None)
        if own is not None:
            self.sweep.ended(own)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler handles results."""

    def save(self, checkpoint_path: str) -> None:
        """Tune's own state is disposable: a resumed sweep is read from its folder."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as in `save`."""


class SweepScheduler(_OfTheDriver, FIFOScheduler):
    """Passes every result to the sweep and stops what it says."""

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
        # Ray Train's workers would outlive the function that started them, with what they hold: they are told, and end by themselves.
        self.messenger.say.remote(_job_id(trial), STOPPED)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial's last result comes here and not to `on_trial_result`; a stopped one's comes to both.

        Tune keeps its trials, and each metric's latest values with them, to the sweep's end: the values are let go here.
        """
        self._record(trial, result)
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker was lost. Tune would start the trial again for ever: `on_trial_add`, called next, decides."""
        error, job_id = _error(trial), _job_id(trial)
        if trial.status == Trial.PENDING:  # it stands in line already: another report of the same loss
            return
        kills, before = kernel_kills(), self.kernel_kills
        self.kernel_kills = kills
        fault = fault_of(error, kernel_kills=kills - before)
        RAY_LOGGER.error("%s lost its worker: %s", job_id, error)
        self.sweep.lost(job_id, error_line(error, fault), fault)
        if self.sweep.halted is not None:
            self.messenger.say.remote(EVERYBODY, self.sweep.halted)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A new trial, or one that lost its worker and stands in line again."""
        super().on_trial_add(tune_controller, trial)
        job_id = _job_id(trial)
        if job_id in self.sweep.running and not self.sweep.may_go_on(job_id):
            tune_controller.stop_trial(trial)

    def _record(self, trial: Any, result: dict[str, Any]) -> bool:
        """Pass a result on; whether the trial should stop."""
        job_id = _job_id(trial)
        if PROBLEM in result:
            self.sweep.failed(job_id, str(result[PROBLEM]))
            return True
        row = EvaluationRow(time=0.0, **json.loads(result[ROW]))
        return self.sweep.evaluated(job_id, row)


def _job_id(trial: Any) -> str:
    return str(trial.config["id"])


def _error(trial: Any) -> BaseException | None:
    """What a trial's worker was lost to. Tune's own reading looks where the error isn't uploaded yet.

    Of an OutOfMemoryError Tune keeps the text alone. Each pickled error is read once: left there, it would pass for the next one's.
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
    """What Tune wrote of the last failure, without its heading."""
    if path is None or not os.path.exists(path):
        return None
    with open(path, errors="replace") as file:
        last = re.split(r"^Failure # \d+ \(occurred at .*\)\n", file.read(), flags=re.MULTILINE)[-1]
    return last.strip() or None


class Silent(TrialProgressCallback):
    """Stands where Tune would put one that prints."""

    def on_trial_result(self, *args: Any, **info: Any) -> None:
        """The sweep says it."""

    def on_trial_error(self, *args: Any, **info: Any) -> None:
        """The sweep says it."""

    def on_trial_complete(self, *args: Any, **info: Any) -> None:
        """The sweep says it."""


class Watch(_OfTheDriver, Callback):
    """Ends the sweep where Ray's process on this machine is gone: Tune would wait for ever for what its workers say."""

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id
        self.looks: Sequence[Callable[[], None]] = ()
        """What else is done now and then."""
        self._next_sec = 0.0

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Called some times a second. Raises RayLost."""
        if time.monotonic() >= self._next_sec:
            self._next_sec = time.monotonic() + WATCH_SEC
            self.check()
            for look in self.looks:
                look()

    def check(self) -> None:
        """Raises RayLost."""
        if not any(node["NodeID"] == self.node_id and node["Alive"] for node in ray.nodes()):
            raise RayLost
