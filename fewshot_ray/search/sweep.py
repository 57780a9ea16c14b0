"""A sweep as a state machine: chooses the next trial and handles results, by its folder and study. Uses no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.search.faults import Fault
from fewshot_ray.search.halving import SuccessiveHalving
from fewshot_ray.search.hyperparameters import Hyperparameters
from fewshot_ray.search.jobs import Job, after_search, search_job, trial_id
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.kept_checkpoints import KeptCheckpoints
from fewshot_ray.search.observers import Boards, Progress
from fewshot_ray.search.study import PLAIN_ORIGIN, SAMPLER, Proposal, Study
from fewshot_ray.search.sweep_folder import EvaluationRow, State, SweepFolder, TrialRecord
from fewshot_ray.spec.document import Document, ranges, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.compose import PLAIN, plain_values, preset_values, search_trials
from fewshot_ray.trial.ranking import Ranking

MOST_MACHINES_LOST = 100
"""Lost machines after which a trial is given up, since it may be the cause."""


class Next(Enum):
    """What to do if there is no job."""

    WAIT = "wait"
    """A running job must end first."""
    DONE = "done"
    """The sweep is finished."""


@dataclass
class Running:
    """A job that is running on a worker."""

    job: Job
    steps: set[int] = field(default_factory=set)
    """Steps whose evaluation is on record."""
    stopped: bool = False
    """Whether successive halving stopped it."""
    problem: str | None = None
    failures: list[str] = field(default_factory=list)
    """Why its worker crashed, each time."""
    fault: Fault = Fault.OWN
    """The kind of the last fault."""
    was_left: bool = False
    """Whether it was left open by an earlier run, and is run again by `resume`."""
    machines_lost: int = 0
    """Times that its machine was lost or about to end."""
    just_lost: bool = False
    """Whether its worker was lost and has had no evaluation since."""

    @property
    def losses(self) -> dict[str, Any]:
        """The counts that are kept when the job starts again."""
        return {"failures": self.failures, "machines_lost": self.machines_lost}


class Sweep:
    """The driver's state of a sweep. All of it is in the folder; resuming means building it from there."""

    def __init__(
        self,
        document: Document,
        file: FileSpec,
        folder: SweepFolder,
        journal: Journal,
        progress: Progress,
        boards: Boards,
        *,
        concurrent: int,
        may_write: Callable[[], None] = lambda: None,
        may_begin: Callable[[], None] = lambda: None,
    ) -> None:
        self.document = document
        self.file = file
        self.folder = folder
        self.journal = journal
        self.progress = progress
        self.boards = boards
        self.concurrent = concurrent
        self.may_write = may_write
        """Called before writing; raises UserError where another driver has taken the sweep over."""
        self.may_begin = may_begin
        """Called before each trial; raises UserError where images or model have changed since the sweep began."""
        self.study = Study(
            journal.path,
            file.name,
            file.search,
            ranges(document.tree),
            seed=file.seed,
            outside=() if PLAIN in file.method else (PLAIN_ORIGIN,),
        )
        self.trials = search_trials(document, file)
        """Number of the search's trials."""
        self.ranking = Ranking.of(file.search)
        self.halving = self._halving()
        self.kept = KeptCheckpoints(folder, file.search)
        self.hyperparameters = Hyperparameters(document)
        self.running: dict[str, Running] = {}
        self.pending: list[Job] = []
        self.interrupted: dict[str, Running] = {}
        """Trials among `pending` that had started here, with their counts of losses."""
        self.announced: set[str] = set()
        self.last_time_sec = 0.0
        """Time of the latest recorded evaluation, in seconds since 1970."""
        self.done = False
        self.progressed = False
        """Whether any evaluation has been recorded."""
        self.closing = False
        """Whether the sweep is to end early: no job is started any more."""
        self.halted: str | None = None
        """Why nothing can be written any more; the sweep is then closing."""
        self.left: dict[str, str] = {}
        """Reasons by id of trials that stay open, since the fault wasn't theirs."""
        self.waiting: list[Job] | None = None
        """Remaining jobs after the search; None where they must be read from the folder."""
        self._reconcile()
        self.progress.add_trials(self.trials, done=sum(trial.kind == "search" and trial.state != "RUNNING" for trial in folder.trials()))

    def _halving(self) -> SuccessiveHalving | None:
        scheduler = self.file.search.scheduler
        if scheduler is None or scheduler.asha is None:
            return None
        searched = ranges(self.document.tree).get("train.steps")
        steps = max(searched.endpoints()) if searched else self.file.train.steps
        metric = scheduler.asha.metric
        ranking = self.ranking if metric is None else Ranking({metric: METRICS[metric].direction}, self.ranking.bounds)
        return SuccessiveHalving(scheduler.asha, ranking, steps=steps)

    # Resuming

    def _reconcile(self) -> None:
        """Reconcile records and journal, rebuild the rungs, and queue the trials that were running.

        The record decides: one whose folder was removed to run it again has ended in the journal, but not on record.
        """
        trained = [proposal for proposal in self.study.proposals() if proposal.repeats is None]
        jobs = [(proposal, search_job(self.document, self.file, proposal)) for proposal in trained]
        stopped = self._replay_rungs([job for _, job in jobs])
        for proposal, job in jobs:
            record = self.folder.record(job.id)
            if record is None:  # only proposed, or its folder was removed to run it again
                self._write_record(job, None)
                self.pending.append(job)
            elif record.state != "RUNNING":
                if not proposal.state.is_finished():
                    self._tell(proposal.number, record)
                self.kept.ended(record)
            elif self._ended(job) or job.id in stopped:
                self._settle(job, record, "PRUNED" if job.id in stopped else "COMPLETE", None)
            else:
                self.pending.append(job)
        self.journal.sync()

    def _replay_rungs(self, jobs: list[Job]) -> set[str]:
        """Replay recorded evaluations on the rungs; returns the trials that stopped at their latest one."""
        stopped: set[str] = set()
        timed = [(row.time, job, row) for job in jobs for row in self.folder.rows(job.id)]
        for time_sec, job, row in sorted(timed, key=lambda item: item[0]):
            self.last_time_sec = time_sec
            stopped.discard(job.id)
            if self._should_stop(job, row):
                stopped.add(job.id)
        return stopped

    def _ended(self, job: Job) -> bool:
        rows = self.folder.rows(job.id)
        return bool(rows) and rows[-1].step >= job.last_step

    # What is next

    def next_job(self) -> Job | Next:
        """The next job for a worker, which counts as running from now on."""
        self.may_write()
        if self.closing:
            return Next.WAIT if self.running else Next.DONE
        if len(self.running) >= self.concurrent:
            return Next.WAIT
        job = self.pending.pop(0) if self.pending else self._new_job()
        if isinstance(job, Job):
            self.may_begin()
            self._start(job)
        return job

    def _new_job(self) -> Job | Next:
        trained = sum(proposal.repeats is None for proposal in self.study.proposals())
        if trained < self.trials:
            return search_job(self.document, self.file, self._propose(trained))
        if any(running.job.kind == "search" for running in self.running.values()):
            return Next.WAIT
        if any(job_id in self.left for job_id in map(trial_id, range(len(self.study.proposals())))):
            return Next.WAIT if self.running else Next.DONE
        if self.waiting is None:
            jobs = after_search(self.folder, self.file)
            self._announce(jobs)
            self.waiting = [job for job in jobs if job.id not in {*self.running, *self.left} and self._unfinished(job.id)]
        if self.waiting:
            return self.waiting.pop(0)
        self.done = not self.running and not self.left
        if self.done:
            self.kept.tidy()
        return Next.WAIT if self.running else Next.DONE

    def _announce(self, jobs: list[Job]) -> None:
        """Add the jobs after the search to the number of trials in the progress."""
        new = {job.id for job in jobs} - self.announced
        self.announced |= new
        if new:
            self.progress.add_trials(len(new), done=sum(not self._unfinished(job_id) for job_id in new))

    def _unfinished(self, trial_id: str) -> bool:
        record = self.folder.record(trial_id)
        return record is None or record.state == "RUNNING"

    def _propose(self, number: int) -> Proposal:
        """The proposal for the search's trained trial of this number."""
        first, known = self._first_trials(), len(self.study.proposals())
        proposal = self.study.add(*first[number]) if number < len(first) else self.study.propose()
        self.journal.sync()
        if repeats := [repeat.repeats for repeat in self.study.proposals()[known:-1] if repeat.repeats is not None]:
            again = ", ".join(trial_id(number) for number in sorted(set(repeats)))
            self.progress.say(f"{trial_id(proposal.number)}: before it the sampler proposed {again} again, not trained anew")
        return proposal

    def _first_trials(self) -> list[tuple[dict[str, Any], str]]:
        """Values and origins of the trials before the sampler's: the methods' preset and plain fine-tuning."""
        search = self.file.search
        preset = preset_values(self.document)
        is_plain = PLAIN in self.file.method
        first: list[tuple[dict[str, Any], str]] = []
        if not preset:
            first.append(({}, PLAIN_ORIGIN if is_plain else "file"))
        elif search.include_preset:
            first.append((preset, PLAIN_ORIGIN if is_plain else "preset"))
        if search.include_plain and not is_plain:
            first.append((plain_values(preset), PLAIN_ORIGIN))
        return first

    def _start(self, job: Job) -> None:
        before = self.folder.record(job.id)
        self._write_record(job, before.started if before else None)
        self.folder.trial(job.id).write_text("spec.yaml", to_yaml(job.tree))
        rows = self.folder.rows(job.id)
        last_step = rows[-1].step if rows else None
        before_that = self.interrupted.pop(job.id, Running(job))
        was_left = before_that.was_left or (before is not None and before.error is not None)
        running = replace(Running(job, {row.step for row in rows}, was_left=was_left), **before_that.losses)
        self.running[job.id] = running
        self.boards.begin(job.id, self.hyperparameters.of(job.tree, job.seed), rows)
        self.progress.started(job.id, job.label, steps=job.last_step, step=last_step or 0)

    # What a result means

    def evaluated(self, trial_id: str, row: EvaluationRow) -> bool:
        """Record an evaluation; returns whether the trial should stop.

        One that is recorded already (of a resumed trial) is ignored, as are those of a trial that hasn't yet heard that it should stop.
        """
        self.may_write()
        running = self.running[trial_id]
        if running.stopped or row.step in running.steps:
            return running.stopped
        # The rungs are rebuilt in the order of these times, which a clock set back must not change.
        self.last_time_sec = max(time.time(), math.nextafter(self.last_time_sec, math.inf))
        row = replace(row, time=self.last_time_sec)
        running.steps.add(row.step)
        running.just_lost = False
        self.folder.append_row(trial_id, row)
        self.progressed = True
        self.boards.show(trial_id, row)
        self.progress.evaluated(trial_id, row.step, row.metrics, row.train_loss)
        running.stopped = self._should_stop(running.job, row)
        return running.stopped

    def _should_stop(self, job: Job, row: EvaluationRow) -> bool:
        if self.halving is None or job.kind != "search" or row.step >= job.last_step:
            return False
        beaten = self.halving.report(job.id, row.step, row.metrics)
        # Preset and plain fine-tuning are never stopped, since the search is compared with them.
        return beaten and job.origin == SAMPLER

    def failed(self, trial_id: str, problem: str) -> None:
        """The trial failed in a way that no retry helps (a NaN loss, settings that don't fit)."""
        self.running[trial_id].problem = problem

    def lost(self, trial_id: str, reason: str, fault: Fault = Fault.OWN) -> None:
        """The trial's worker was lost; `may_go_on` tells whether it is restarted."""
        running = self.running[trial_id]
        running.just_lost, running.fault = True, fault
        if fault is Fault.FULL:
            self.halted, self.closing = self.halted or reason, True
        elif fault is Fault.MACHINE_GONE:
            running.machines_lost += 1
        else:
            running.failures.append(reason)
        if not self.closing:
            self.progress.lost(trial_id, reason, again=self.may_go_on(trial_id))

    def may_go_on(self, trial_id: str) -> bool:
        """Whether a lost trial is restarted: not after its last retry, nor if it or the sweep is to end."""
        running = self.running[trial_id]
        return not (self.closing or running.stopped or running.problem or self._given_up(running))

    def _given_up(self, running: Running) -> bool:
        return len(running.failures) > self.file.search.retries or running.machines_lost > MOST_MACHINES_LOST

    def ended(self, trial_id: str) -> None:
        """A running trial has ended, by itself or because it isn't restarted."""
        self.may_write()
        running = self.running.pop(trial_id)
        at_its_end = running.stopped or self._ended(running.job)
        if not (running.problem or at_its_end or self._given_up(running)) and self._goes_on(running):
            return
        lost = self._given_up(running) and not at_its_end
        self.waiting = None
        record = self.folder.record(trial_id)
        assert record is not None
        problem = running.problem
        if lost and not problem and self._stays_open(running):
            self._leave_open(record, running)
            return
        if lost and not problem:
            problem = self._why_given_up(running)
        state: State = "FAIL" if problem else "PRUNED" if running.stopped else "COMPLETE"
        record = self._settle(running.job, record, state, problem)
        self.boards.end(trial_id)
        self.progress.finished(trial_id, record.state, record.values, record.error)

    def _goes_on(self, running: Running) -> bool:
        """Whether a trial that ended before its last evaluation, by no fault of its own, is run again, here or by `resume`."""
        if not self.closing:
            # Tune drops a trial whose worker was lost before it started.
            if not running.just_lost:
                running.failures.append("its worker ended before the last evaluation")
            if self._given_up(running):
                return False
            self.interrupted[running.job.id] = running
            self.pending.insert(0, running.job)
        self.boards.end(running.job.id, ended=False)
        return True

    def _stays_open(self, running: Running) -> bool:
        """Whether the fault was the machine's. Running out of memory again after `resume` is the trial's own fault."""
        return running.fault is Fault.UNREACHABLE or (running.fault is Fault.OUT_OF_MEMORY and not running.was_left)

    def _why_given_up(self, running: Running) -> str:
        if not running.failures:
            return f"it lost {running.machines_lost} machines"
        problem = f"its worker failed (attempt {len(running.failures)}, the last): {running.failures[-1]}"
        if running.fault is Fault.OUT_OF_MEMORY:
            problem += f"; as before it was resumed: with more memory, `resume` runs it again once trials/{running.job.id} is removed"
        return problem

    def _leave_open(self, record: TrialRecord, running: Running) -> None:
        """Record the trial as running, with the fault, so that `resume` runs it again."""
        reason = running.failures[-1]
        self.left[record.id] = reason
        self.folder.write_trial(replace(record, error=reason))
        self.boards.end(record.id, ended=False)
        self.progress.left(record.id, reason)

    def abandon(self) -> None:
        """The driver ends before its trials: they stay recorded as running and continue when the sweep is resumed."""
        for job_id in self.running:
            with suppress(UserError):  # a full disk, say: why the driver stops is known already
                self.boards.end(job_id, ended=False)
        self.running.clear()
        self.boards.close()

    def _settle(self, job: Job, record: TrialRecord, state: State, problem: str | None) -> TrialRecord:
        """Record how a trial ended, in its folder and in the study."""
        rows = self.folder.rows(job.id)
        of_a_refit = len(rows) - 1 if rows else None
        best = self.ranking.best_index([row.metrics for row in rows]) if job.refit_steps is None else of_a_refit
        if best is None and state != "FAIL":
            state, problem = "FAIL", f"no evaluation has a finite {next(iter(self.file.search.objectives))}"
        settled = replace(
            record,
            state=state,
            best_step=None if best is None else rows[best].step,
            values=None if best is None else rows[best].metrics,
            error=problem,
            train_sec=_train_sec(rows, job.tree.get("train", {}).get("batch_size", self.file.train.batch_size) * job.folds),
            ended=_now(),
        )
        self.folder.write_trial(settled)
        if settled.number is not None:
            self._tell(settled.number, settled)
        self.kept.ended(settled)
        return settled

    def _tell(self, number: int, record: TrialRecord) -> None:
        excess = self.ranking.violations(record.values) if record.values and record.state != "FAIL" else {}
        self.study.finish(number, TrialState[record.state], record.values, self.folder.rows(record.id), excess)
        self.journal.sync()

    def _write_record(self, job: Job, started: str | None) -> TrialRecord:
        record = TrialRecord(
            id=job.id,
            number=job.number,
            kind=job.kind,
            origin=job.origin,
            label=job.label,
            seed=job.seed,
            state="RUNNING",
            params=job.params,
            started=started or _now(),
        )
        self.folder.write_trial(record)
        return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _train_sec(rows: Iterable[EvaluationRow], images_a_step: int) -> float:
    seconds, before = 0.0, 0
    for row in rows:
        seconds += (row.step - before) * images_a_step / row.images_per_sec if row.images_per_sec else 0.0
        before = row.step
    return round(seconds, 3)
