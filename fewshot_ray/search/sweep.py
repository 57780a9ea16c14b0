"""A sweep as a state machine: chooses the next trial and handles results, by its folder and study. Uses no Ray."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.search.budget import Budget
from fewshot_ray.search.faults import Fault
from fewshot_ray.search.hyperparameters import Hyperparameters
from fewshot_ray.search.job import Job
from fewshot_ray.search.jobs import after_search, first_trials, search_job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.kept_checkpoints import KeptCheckpoints
from fewshot_ray.search.observers import Boards, Progress
from fewshot_ray.search.own_folder import OwnFolder
from fewshot_ray.search.packing import Packing, learn_from
from fewshot_ray.search.plain_search import PlainSearch
from fewshot_ray.search.records import Records
from fewshot_ray.search.running import Outcome, Running, ended
from fewshot_ray.search.stopping import Stop, Stopping
from fewshot_ray.search.study import EARLIER, PLAIN_ORIGIN, SAMPLER, EarlierTrial, Proposal, Study
from fewshot_ray.search.sweep_folder import EvaluationRow, State, SweepFolder, trial_id
from fewshot_ray.search.warm_start import begin_with_earlier
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.compose import has_plain, search_trials
from fewshot_ray.trial.ranking import Ranking

STATES: Mapping[Outcome, State] = {Outcome.COMPLETE: "COMPLETE", Outcome.PRUNED: "PRUNED", Outcome.FAIL: "FAIL"}
"""The states on record of trials that have ended."""


MORE_FAILURES = 3
"""Trials of the sampler that fail like preset and plain fine-tuning before the sweep is given up."""


class Next(Enum):
    """What to do if there is no job."""

    WAIT = "wait"
    """A running job must end first."""
    DONE = "done"
    """The sweep is finished."""


class _Stage(Enum):
    SEARCH = "search"
    """The search has trials left."""
    WAIT = "wait"
    """Trials of the search are running or stay open."""
    AFTER = "after"
    """Reruns, controls and the refit."""


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
        self.folder = OwnFolder(folder.folder)
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
            document.tree,
            seed=file.seed,
            outside=() if has_plain(document) else (PLAIN_ORIGIN,),
        )
        begin_with_earlier(self.study, document, file, folder.folder, progress.say)
        self.first: list[tuple[Mapping[str, Any], str, EarlierTrial | None]]
        """Values and origins of the trials before the sampler's."""
        self.first = [(values, origin, None) for values, origin in first_trials(document, file)]
        self.first += [(trial.values, EARLIER, trial) for trial in self.study.to_try or ()]
        self.trials = search_trials(document, file, known=self.study.known_elsewhere([values for values, *_ in self.first]))
        """Number of the search's trials."""
        self.ranking = Ranking.of(file.search)
        self.stopping = Stopping.of(document, file)
        self.kept = KeptCheckpoints(self.folder, file.search)
        self.plain = PlainSearch.of(document, file, journal, self.folder)
        """Plain fine-tuning's own search, where it is asked for."""
        self.records = Records(self.folder, file, self.study, self.kept, None if self.plain is None else self.plain.study)
        self.hyperparameters = Hyperparameters(document)
        self.packing = Packing(file.resources)
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
        self.hopeless: str | None = None
        """Why no trial will succeed; the sweep is then closing."""
        self.left: dict[str, str] = {}
        """Reasons by id of trials that stay open, since the fault wasn't theirs."""
        self.waiting: list[Job] | None = None
        """Remaining jobs after the search; None where they must be read from the folder."""
        self._reconcile()
        learn_from(self.folder, self.packing)
        self.budget = Budget(file, self.folder, self.running, progress)
        self.progress.add_trials(
            self.trials, done=sum(trial.kind == "search" and trial.state != "RUNNING" for trial in self.folder.trials())
        )

    # Resuming

    def _reconcile(self) -> None:
        """Reconcile records and journal, replay the evaluations, and queue the trials that were running.

        The record decides: one whose folder was removed to run it again has ended in the journal, but not on record.
        """
        self.folder.trials()  # reads all records side by side
        trained = [proposal for proposal in self.study.proposals() if proposal.is_trained]
        jobs = [(proposal, search_job(self.document, self.file, proposal)) for proposal in trained]
        stops = self._replay([job for _, job in jobs])
        for proposal, job in jobs:
            record = self.folder.record(job.id)
            if record is None:  # only proposed, or its folder was removed to run it again
                self.records.begin(job)
                self.pending.append(job)
            elif record.state != "RUNNING":
                if not proposal.state.is_finished():
                    self.records.tell(record)
                self.kept.ended(record)
                self.stopping.ended(job.id)
            elif stop := stops.get(job.id):
                self.records.settle(job, "COMPLETE" if stop.complete else "PRUNED", stopped=stop.reason)
            elif self._at_last_step(job):
                self.records.settle(job, "COMPLETE")
            else:
                self.pending.append(job)
        if self.plain is not None:
            self.plain.reconcile(self.records, self.kept)
        self.journal.sync()

    def _replay(self, jobs: list[Job]) -> dict[str, Stop]:
        """Report recorded evaluations in their order; returns why those trials stop that do at their latest one."""
        stops: dict[str, Stop | None] = {}
        timed = [(row.time, job, row) for job in jobs for row in self.folder.rows(job.id)]
        for time_sec, job, row in sorted(timed, key=lambda item: item[0]):
            self.last_time_sec = max(self.last_time_sec, time_sec)
            stops[job.id] = self._stop(job, row)
        return {trial_id: stop for trial_id, stop in stops.items() if stop is not None}

    def _at_last_step(self, job: Job) -> bool:
        rows = self.folder.rows(job.id)
        return bool(rows) and rows[-1].step >= job.last_step

    # What is next

    def next_job(self) -> Job | Next:
        """The next job for a worker, which counts as running from now on."""
        self.may_write()
        self.budget.look()
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
        stage = self._stage()
        self.budget.cut(0 if stage is _Stage.SEARCH else self.trials - self.study.trained)
        if stage is _Stage.SEARCH:
            return search_job(self.document, self.file, self._propose())
        if stage is _Stage.AFTER:
            if waiting := self._jobs_after_search():
                return waiting.pop(0)
            if self.plain is not None and (job := self.plain.next_job()) is not None:
                return job
            self.done = not self.running and not self.left
            if self.done:
                self.kept.tidy()
                self.journal.join()
        return Next.WAIT if self.running else Next.DONE

    def _stage(self) -> _Stage:
        """What the next job is of. Has no effect."""
        if self.study.trained < self.trials and not self.budget.is_spent:
            return _Stage.SEARCH
        open_ids = {running.job.id for running in self.running.values() if running.job.kind == "search"} | self.left.keys()
        return _Stage.WAIT if any(trial_id(proposal.number) in open_ids for proposal in self.study.proposals()) else _Stage.AFTER

    def _jobs_after_search(self) -> list[Job]:
        """The remaining jobs after the search; what is taken from the list is running."""
        if self.waiting is None:
            jobs = after_search(self.folder, self.file, plain_is_over=self.plain is not None and self.plain.is_over)
            self._announce(jobs)
            if self.plain is not None:
                was_wanted = self.plain.wanted
                self.plain.look(jobs)
                if self.plain.wanted and not was_wanted:
                    self.progress.add_trials(self.plain.trials, done=self.plain.ended)
            self.waiting = [job for job in jobs if job.id not in {*self.running, *self.left} and self._unfinished(job.id)]
        return self.waiting

    def _announce(self, jobs: list[Job]) -> None:
        """Add the jobs after the search to the number of trials in the progress."""
        new = {job.id for job in jobs} - self.announced
        self.announced |= new
        if new:
            self.progress.add_trials(len(new), done=sum(not self._unfinished(job_id) for job_id in new))

    def _unfinished(self, trial_id: str) -> bool:
        record = self.folder.record(trial_id)
        return record is None or record.state == "RUNNING"

    def _propose(self) -> Proposal:
        """The proposal for the next trained trial of the search."""
        known, number = len(self.study.proposals()), self.study.trained
        proposal = self.study.add(*self.first[number]) if number < len(self.first) else self.study.propose()
        self.journal.sync()
        if repeats := [repeat.repeats for repeat in self.study.proposals()[known:-1] if repeat.repeats is not None]:
            again = ", ".join(self.study.proposals()[number].taken_from or trial_id(number) for number in sorted(set(repeats)))
            self.progress.say(f"{trial_id(proposal.number)}: before it the sampler proposed {again} again, not trained anew")
        return proposal

    def _start(self, job: Job) -> None:
        before = self.folder.record(job.id)
        self.records.begin(job)
        self.folder.trial(job.id).write_text("spec.yaml", to_yaml(job.tree))
        rows = self.folder.rows(job.id)
        last_step = rows[-1].step if rows else None
        before_that = self.interrupted.pop(job.id, Running(job))
        was_left = before_that.was_left or (before is not None and before.error is not None)
        running = replace(Running(job, {row.step for row in rows}, was_left=was_left), **before_that.losses)
        if job.kind != "search" and not self.stopping.knows(job.id):  # its evaluations are those of an earlier run of the driver
            running.stop = self._replay([job]).get(job.id)
        running.part = self.packing.part(alone=running.alone)
        self.running[job.id] = running
        self.boards.begin(job.id, self.hyperparameters.of(job.tree, job.seed), rows)
        self.progress.started(job.id, job.label, steps=job.last_step, step=last_step or 0)

    # What a result means

    def evaluated(self, trial_id: str, row: EvaluationRow, remarks: Iterable[str] = ()) -> bool:
        """Record an evaluation, and say the trial's remarks; returns whether the trial should stop.

        One that is recorded already (of a resumed trial) is ignored, as are those of a trial that hasn't yet heard that it should stop.
        """
        self.may_write()
        self.budget.look()
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
        for remark in remarks:
            self.progress.say(f"{trial_id}: {remark}")
        if changed := self.packing.learn(row.memory):
            self.progress.say(changed)
        running.stop = self._stop(running.job, row)
        return running.stopped

    def _stop(self, job: Job, row: EvaluationRow) -> Stop | None:
        """Whether the trial ends before its last step, and why."""
        searched = job.kind == "search"
        return self.stopping.report(
            job.id,
            row,
            looks=math.ceil(job.last_step / self.file.evaluate.every),
            last_step=job.last_step,
            searched=searched,
            # The search is compared with preset and plain fine-tuning.
            may_lose=searched and job.origin in (SAMPLER, EARLIER),
        )

    def failed(self, trial_id: str, problem: str, *, by_values: bool = False, gpu_memory: bool = False) -> None:
        """The trial failed in a way that no retry helps (a NaN loss, settings that don't fit).

        One whose part of a GPU was too small (`gpu_memory`) is started again with a whole one.
        """
        running = self.running[trial_id]
        if gpu_memory and running.part.shares_gpu and self.file.resources.workers == 1:
            running.alone = running.again = True
            self.progress.say(f"{trial_id}: its part of a GPU ({running.part.gpus:g}) is too small for it; it goes on with a whole one")
            return
        running.problem, running.by_values = problem, by_values

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
        return not (self.closing or running.stopped or running.problem or running.again or running.is_given_up(self.file.search.retries))

    def ended(self, trial_id: str) -> None:
        """A running trial has ended, by itself or because it isn't restarted."""
        self.may_write()
        self.budget.look()
        running, retries = self.running.pop(trial_id), self.file.search.retries
        at_last_step = self._at_last_step(running.job)
        # Tune drops a trial whose worker was lost before it started.
        known = at_last_step or running.stopped or running.again or running.just_lost
        if not (self.closing or known or running.is_given_up(retries)):
            running.failures.append("its worker ended before the last evaluation")
        verdict = ended(running, at_last_step=at_last_step, closing=self.closing, retries=retries)
        if verdict.outcome is Outcome.AGAIN:
            self.interrupted[trial_id] = running
            self.pending.insert(0, running.job)
        if verdict.outcome in (Outcome.AGAIN, Outcome.INTERRUPTED):
            self.boards.end(trial_id, ended=False)
            return
        self.waiting = None
        if verdict.outcome is Outcome.OPEN:
            self._leave_open(trial_id, verdict.reason or "")
            return
        stopped = running.stop.reason if running.stop is not None and verdict.outcome is not Outcome.FAIL else None
        record = self.records.settle(running.job, STATES[verdict.outcome], verdict.reason, verdict.failed_by, stopped)
        self.stopping.ended(trial_id)
        self.budget.ended(record)
        if record.state == "FAIL" and (reason := self._all_fail_alike()):
            self.hopeless, self.closing = reason, True
        self.boards.end(trial_id)
        self.progress.finished(trial_id, record.state, record.values, record.error or record.stopped)

    def _all_fail_alike(self) -> str | None:
        """The error of the search's first trials, preset and plain fine-tuning among them, where all failed with the same one."""
        first = len(first_trials(self.document, self.file)) + MORE_FAILURES
        records = [record for record in self.folder.trials() if record.kind == "search"]
        failed = [record for record in records if record.state == "FAIL"]
        if not first <= len(failed) < self.trials or any(record.state in ("COMPLETE", "PRUNED") for record in records):
            return None
        if len({re.sub(r"\d[\d.e+-]*", "#", record.error or "") for record in failed}) > 1:
            return None
        return f"all of the first {len(failed)} trials failed alike ({failed[0].error})"

    def _leave_open(self, trial_id: str, reason: str) -> None:
        """Its record says that it is running, with the fault, so that `resume` runs it again."""
        self.left[trial_id] = reason
        self.records.leave_open(trial_id, reason)
        self.boards.end(trial_id, ended=False)
        self.progress.left(trial_id, reason)

    def abandon(self) -> None:
        """The driver ends before its trials: they stay recorded as running and continue when the sweep is resumed."""
        for job_id in self.running:
            with suppress(UserError):  # a full disk, say: why the driver stops is known already
                self.boards.end(job_id, ended=False)
        self.budget.close()
        self.running.clear()
        if self.closing and not self.halted:
            with suppress(UserError):
                self.journal.join()
        self.boards.close()
