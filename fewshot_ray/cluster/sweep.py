"""A sweep as a state machine over its folder and study: which trial is next, what a result means. Knows no Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import Enum
from typing import Any, cast

from optuna.trial import TrialState

from fewshot_ray.cluster.faults import Fault
from fewshot_ray.cluster.halving import SuccessiveHalving
from fewshot_ray.cluster.jobs import Job, after_search, search_job, trial_id
from fewshot_ray.cluster.journal import Journal
from fewshot_ray.cluster.kept import KeptCheckpoints
from fewshot_ray.cluster.study import PLAIN_ORIGIN, SAMPLER, Proposal, Study
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.report.hyperparameters import Hyperparameters
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.sweep_folder import EvaluationRow, State, SweepFolder, TrialRecord
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.spec.document import Document, ranges, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.compose import PLAIN, preset_values, search_trials
from fewshot_ray.trial.ranking import Ranking

MOST_MACHINES_LOST = 100
"""Of one trial, before it is given up: it may be what its machines die of."""


class Next(Enum):
    """What to do where there is no job."""

    WAIT = "wait"
    """Something that runs must end first."""
    DONE = "done"
    """The sweep is finished."""


@dataclass
class Running:
    """A job that a worker has."""

    job: Job
    steps: set[int] = field(default_factory=set)
    """Steps whose evaluation is on record."""
    stopped: bool = False
    """Whether successive halving stopped it."""
    problem: str | None = None
    failures: list[str] = field(default_factory=list)
    """Why its worker crashed, each time."""
    fault: Fault = Fault.OWN
    """Of the last of them."""
    was_left: bool = False
    """Whether it was left open before, and is run again by `resume`."""
    machines_lost: int = 0
    """Times that its machine went away under it, or was about to."""
    just_lost: bool = False
    """Whether its worker was lost, and nothing has been heard of it since."""

    @property
    def losses(self) -> dict[str, Any]:
        """What stays of it when it is begun again."""
        return {"failures": self.failures, "machines_lost": self.machines_lost}


class Sweep:
    """The one driver's view. Everything it knows is in the folder: building it anew from there is what resuming is."""

    def __init__(
        self,
        document: Document,
        file: FileSpec,
        folder: SweepFolder,
        journal: Journal,
        progress: Progress,
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
        self.concurrent = concurrent
        self.may_write = may_write
        """Raises UserError where another driver has taken the sweep over."""
        self.may_begin = may_begin
        """Asked before each trial; raises UserError where images or model aren't those that the sweep began with."""
        self.study = Study(
            journal.path,
            file.name,
            file.search,
            ranges(document.tree),
            seed=file.seed,
            outside=() if PLAIN in file.method else (PLAIN_ORIGIN,),
        )
        self.trials = search_trials(document, file)
        """Of the search."""
        self.ranking = Ranking.of(file.search)
        self.halving = self._halving()
        self.kept = KeptCheckpoints(folder, file.search)
        self.boards = Boards(folder)
        self.hyperparameters = Hyperparameters(document)
        self.running: dict[str, Running] = {}
        self.pending: list[Job] = []
        self.interrupted: dict[str, Running] = {}
        """Those among `pending` that had begun here, with what was lost."""
        self.announced: set[str] = set()
        self.last_time_sec = 0.0
        """Of the latest evaluation on record, in seconds since 1970."""
        self.done = False
        self.progressed = False
        """Whether an evaluation was put on record."""
        self.closing = False
        """Set where the sweep is to end before its time: nothing more is begun."""
        self.halted: str | None = None
        """Why nothing can be written any more; the sweep closes then."""
        self.left: dict[str, str] = {}
        """Trials that stay open, by id: what kept them from going on says nothing against them."""
        self.waiting: list[Job] | None = None
        """Of what comes after the search; None where the folder is to be asked."""
        self._reconcile()
        self.progress.add_trials(self.trials, done=sum(trial.kind == "search" and trial.state != "RUNNING" for trial in folder.trials()))

    def _halving(self) -> SuccessiveHalving | None:
        scheduler = self.file.search.scheduler
        if scheduler is None or scheduler.asha is None:
            return None
        searched = ranges(self.document.tree).get("train.steps")
        steps = max(searched.endpoints()) if searched else self.file.train.steps
        return SuccessiveHalving(
            scheduler.asha, direction=METRICS[scheduler.asha.metric].direction, steps=steps, bounds=self.ranking.bounds
        )

    # Resuming

    def _reconcile(self) -> None:
        """Bring records and journal together, rebuild the rungs, and line up what was running."""
        trained = [proposal for proposal in self.study.proposals() if proposal.repeats is None]
        jobs = [(proposal, search_job(self.document, self.file, proposal)) for proposal in trained]
        stopped = self._replay_rungs([job for _, job in jobs])
        for proposal, job in jobs:
            record = self.folder.record(job.id)
            if record is None:  # proposed and no more, or its folder was removed to run it again
                self._write_record(job, None)
                self.pending.append(job)
            elif proposal.state.is_finished():
                if record.state == "RUNNING":
                    self._settle(job, record, cast(State, proposal.state.name), None)
                else:
                    self.kept.ended(record)
            elif record.state != "RUNNING":
                self._tell(proposal.number, record)
                self.kept.ended(record)
            elif self._ended(job) or job.id in stopped:
                self._settle(job, record, "PRUNED" if job.id in stopped else "COMPLETE", None)
            else:
                self.pending.append(job)
        self.journal.sync()

    def _replay_rungs(self, jobs: list[Job]) -> set[str]:
        """The trials whose latest evaluation was one to stop at."""
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
        """The next job to hand to a worker, which counts as running from now on."""
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
        """Count the jobs after the search among the sweep's trials."""
        new = {job.id for job in jobs} - self.announced
        self.announced |= new
        if new:
            self.progress.add_trials(len(new), done=sum(not self._unfinished(job_id) for job_id in new))

    def _unfinished(self, trial_id: str) -> bool:
        record = self.folder.record(trial_id)
        return record is None or record.state == "RUNNING"

    def _propose(self, number: int) -> Proposal:
        """The search's trial of this number among those that are trained."""
        first, known = self._first_trials(), len(self.study.proposals())
        proposal = self.study.add(*first[number]) if number < len(first) else self.study.propose()
        self.journal.sync()
        if repeats := [repeat.repeats for repeat in self.study.proposals()[known:-1] if repeat.repeats is not None]:
            again = ", ".join(trial_id(number) for number in sorted(set(repeats)))
            self.progress.say(f"{trial_id(proposal.number)}: before it the sampler proposed {again} again, not trained anew")
        return proposal

    def _first_trials(self) -> list[tuple[dict[str, Any], str]]:
        """The methods' preset and plain fine-tuning; after them the sampler has its way."""
        search = self.file.search
        preset = preset_values(self.document)
        is_plain = PLAIN in self.file.method
        first: list[tuple[dict[str, Any], str]] = []
        if not preset:
            first.append(({}, PLAIN_ORIGIN if is_plain else "file"))
        elif search.include_preset:
            first.append((preset, PLAIN_ORIGIN if is_plain else "preset"))
        if search.include_plain and not is_plain:
            first.append(({path: value for path, value in preset.items() if not path.startswith("method.")}, PLAIN_ORIGIN))
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
        """Put an evaluation on record; whether the trial should stop.

        One that is on record already (a resumed trial's) is passed over, as is what a trial does before it hears that it should stop.
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
        # Preset and plain fine-tuning are what the search is compared with: they run to their end.
        return beaten and job.origin == SAMPLER

    def failed(self, trial_id: str, problem: str) -> None:
        """The trial can't go on (a NaN loss, a spec that doesn't fit): no retry would help."""
        self.running[trial_id].problem = problem

    def lost(self, trial_id: str, reason: str, fault: Fault = Fault.OWN) -> None:
        """The trial's worker is gone; whether it is started again says `may_go_on`."""
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
        """Whether a trial that was lost is started again: not after its last retry, nor where it was to stop, or the sweep is."""
        running = self.running[trial_id]
        return not (self.closing or running.stopped or running.problem or self._given_up(running))

    def _given_up(self, running: Running) -> bool:
        return len(running.failures) > self.file.search.retries or running.machines_lost > MOST_MACHINES_LOST

    def ended(self, trial_id: str) -> None:
        """A running trial has ended, by itself or because it may not go on."""
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
        """A trial ended before its last evaluation, for no reason of its own: whether it is begun again, here or when resumed."""
        if not self.closing:
            # Tune drops a trial whose worker was lost before it began, and has said so.
            if not running.just_lost:
                running.failures.append("its worker ended before the last evaluation")
            if self._given_up(running):
                return False
            self.interrupted[running.job.id] = running
            self.pending.insert(0, running.job)
        self.boards.end(running.job.id, ended=False)
        return True

    def _stays_open(self, running: Running) -> bool:
        """Whether what it was lost to is the machine's. Out of memory a second time, after `resume`, is the trial's own."""
        return running.fault is Fault.UNREACHABLE or (running.fault is Fault.OUT_OF_MEMORY and not running.was_left)

    def _why_given_up(self, running: Running) -> str:
        if not running.failures:
            return f"it lost {running.machines_lost} machines"
        problem = f"its worker failed (attempt {len(running.failures)}, the last): {running.failures[-1]}"
        if running.fault is Fault.OUT_OF_MEMORY:
            problem += f"; as before it was resumed: with more memory, `resume` runs it again once trials/{running.job.id} is removed"
        return problem

    def _leave_open(self, record: TrialRecord, running: Running) -> None:
        """The trial stays on record as running, with what it was lost to, for `resume` to run again."""
        reason = running.failures[-1]
        self.left[record.id] = reason
        self.folder.write_trial(replace(record, error=reason))
        self.boards.end(record.id, ended=False)
        self.progress.left(record.id, reason)

    def abandon(self) -> None:
        """The driver stops before its trials ended: they stay on record as running and go on when the sweep is resumed."""
        for job_id in self.running:
            with suppress(UserError):  # a full disk, say: why the driver stops is known already
                self.boards.end(job_id, ended=False)
        self.running.clear()
        self.boards.close()

    def _settle(self, job: Job, record: TrialRecord, state: State, problem: str | None) -> TrialRecord:
        """Write how a trial ended, and tell the study."""
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
