"""A sweep as a state machine: chooses the next trial and handles results, by its folder and study. Uses no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum

from fewshot_ray.errors import UserError
from fewshot_ray.search.after_search import AfterSearch
from fewshot_ray.search.budget import Budget
from fewshot_ray.search.evaluations import Evaluations
from fewshot_ray.search.faults import Fault
from fewshot_ray.search.hopeless import failing_alike
from fewshot_ray.search.hyperparameters import Hyperparameters
from fewshot_ray.search.job import Job
from fewshot_ray.search.jobs import search_job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.kept_checkpoints import KeptCheckpoints
from fewshot_ray.search.observers import Boards, Progress
from fewshot_ray.search.order import Order
from fewshot_ray.search.own_folder import OwnFolder
from fewshot_ray.search.packing import Packing, learn_from
from fewshot_ray.search.plain_search import PlainSearch
from fewshot_ray.search.records import Records
from fewshot_ray.search.running import Ended, Outcome, Running, ended
from fewshot_ray.search.stopping import Stopping
from fewshot_ray.search.sweep_folder import EvaluationRow, State, SweepFolder, TrialRecord, trial_id
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.ranking import Ranking

STATES: Mapping[Outcome, State] = {Outcome.COMPLETE: "COMPLETE", Outcome.PRUNED: "PRUNED", Outcome.FAIL: "FAIL"}
"""The states on record of trials that have ended."""


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
        self.order = Order.of(document, file, folder.folder, journal, progress.say)
        self.study = self.order.study
        self.ranking = Ranking.of(file.search)
        self.stopping = Stopping.of(document, file)
        self.evaluations = Evaluations(self.folder, self.stopping, every=file.evaluate.every)
        self.kept = KeptCheckpoints(self.folder, file.search)
        self.plain = PlainSearch.of(document, file, journal, self.folder)
        """Plain fine-tuning's own search, where it is asked for."""
        self.after_search = AfterSearch(self.folder, file, self.plain, progress)
        self.records = Records(self.folder, file, self.study, self.kept, None if self.plain is None else self.plain.study)
        self.hyperparameters = Hyperparameters(document)
        self.packing = Packing(file.resources)
        self.running: dict[str, Running] = {}
        self.pending: list[Job] = []
        self.interrupted: dict[str, Running] = {}
        """Trials among `pending` that had started here, with their counts of losses."""
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
        self._reconcile()
        learn_from(self.folder, self.packing)
        self.budget = Budget(file, self.folder, self.running, progress)
        done = sum(trial.kind == "search" and trial.state != "RUNNING" for trial in self.folder.trials())
        self.progress.add_trials(self.order.trials, done=done)

    # Resuming

    def _reconcile(self) -> None:
        """Reconcile records and journal, replay the evaluations, and queue the trials that were running.

        The record decides: one whose folder was removed to run it again has ended in the journal, but not on record.
        """
        self.folder.trials()  # reads all records side by side
        trained = [proposal for proposal in self.study.proposals() if proposal.is_trained]
        jobs = [(proposal, search_job(self.document, self.file, proposal)) for proposal in trained]
        stops = self.evaluations.replay(job for _, job in jobs)
        for proposal, job in jobs:
            record = self.folder.record(job.id)
            if record is None:  # only proposed, or its folder was removed to run it again
                self.records.begin(job)
                self.pending.append(job)
            elif record.state == "RUNNING":
                self._take_up(Running(job, stop=stops.get(job.id)))
            else:
                if not proposal.state.is_finished():
                    self.records.tell(record)
                self.kept.ended(record)
        if self.plain is not None:
            self.plain.reconcile(self.records, self.kept)
        self.journal.sync()

    def _take_up(self, running: Running) -> None:
        """Go on with a trial that was running; after its last evaluation only the record of its end was missing."""
        verdict = ended(running, at_last_step=self.evaluations.are_all_there(running.job), closing=True, retries=self.file.search.retries)
        if verdict.outcome is Outcome.INTERRUPTED:
            self.pending.append(running.job)
        else:
            self._settle(running, verdict)

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
        self.budget.cut(0 if stage is _Stage.SEARCH else self.order.left)
        if stage is _Stage.SEARCH:
            return self._propose()
        if stage is _Stage.AFTER:
            if (job := self.after_search.next_job([*self.running, *self.left])) is not None:
                return job
            self.done = not self.running and not self.left
            if self.done:
                self.kept.tidy()
                self.journal.join()
        return Next.WAIT if self.running else Next.DONE

    def _stage(self) -> _Stage:
        """What the next job is of. Has no effect."""
        if self.order.left and not self.budget.is_spent:
            return _Stage.SEARCH
        open_ids = {running.job.id for running in self.running.values() if running.job.kind == "search"} | self.left.keys()
        return _Stage.WAIT if any(trial_id(proposal.number) in open_ids for proposal in self.study.proposals()) else _Stage.AFTER

    def _propose(self) -> Job:
        proposal = self.order.next()
        if again := self.order.proposed_again(proposal):
            self.progress.say(again)
        return search_job(self.document, self.file, proposal)

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
            running.stop = self.evaluations.replay([job]).get(job.id)
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
        running.steps.add(row.step)
        running.just_lost = False
        row = self.evaluations.add(running.job, row)
        running.stop = self.evaluations.stop(running.job, row)
        self.progressed = True
        self.boards.show(trial_id, row)
        self.progress.evaluated(trial_id, row.step, row.metrics, row.train_loss)
        for remark in remarks:
            self.progress.say(f"{trial_id}: {remark}")
        if changed := self.packing.learn(row.memory):
            self.progress.say(changed)
        return running.stopped

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
        self.running[trial_id].lose(reason, fault)
        if fault is Fault.FULL:
            self.halted, self.closing = self.halted or reason, True
        if not self.closing:
            self.progress.lost(trial_id, reason, again=self.may_go_on(trial_id))

    def may_go_on(self, trial_id: str) -> bool:
        """Whether a lost trial is restarted: not after its last retry, nor if it or the sweep is to end."""
        return not self.closing and self.running[trial_id].may_go_on(self.file.search.retries)

    def ended(self, trial_id: str) -> None:
        """A running trial has ended, by itself or because it isn't restarted."""
        self.may_write()
        self.budget.look()
        running, retries = self.running.pop(trial_id), self.file.search.retries
        at_last_step = self.evaluations.are_all_there(running.job)
        if not self.closing and running.is_dropped(retries, at_last_step=at_last_step):
            running.failures.append("its worker ended before the last evaluation")
        verdict = ended(running, at_last_step=at_last_step, closing=self.closing, retries=retries)
        if verdict.outcome is Outcome.INTERRUPTED:
            self.boards.end(trial_id, ended=False)
        elif verdict.outcome is Outcome.AGAIN:
            self._begin_again(running)
        elif verdict.outcome is Outcome.OPEN:
            self._leave_open(trial_id, verdict.reason or "")
        else:
            self._finish(running, verdict)

    def _begin_again(self, running: Running) -> None:
        self.interrupted[running.job.id] = running
        self.pending.insert(0, running.job)
        self.boards.end(running.job.id, ended=False)

    def _finish(self, running: Running, verdict: Ended) -> None:
        """It is complete, pruned or failed."""
        record = self._settle(running, verdict)
        self.after_search.ended()
        self.budget.ended(record)
        self.boards.end(record.id)
        self.progress.finished(record.id, record.state, record.values, record.error or record.stopped)
        if record.state == "FAIL":
            reason = failing_alike(self.folder.trials(), references=self.order.references, trials=self.order.trials)
            self.hopeless, self.closing = reason or self.hopeless, self.closing or reason is not None

    def _settle(self, running: Running, verdict: Ended) -> TrialRecord:
        """Put its end on record."""
        stopped = running.stop.reason if running.stop is not None and verdict.outcome is not Outcome.FAIL else None
        state, at_sec = STATES[verdict.outcome], self.evaluations.now_sec()
        record = self.records.settle(running.job, state, verdict.reason, verdict.failed_by, stopped, at_sec=at_sec)
        self.stopping.ended(record.id, record.state)
        return record

    def _leave_open(self, trial_id: str, reason: str) -> None:
        """Its record says that it is running, with the fault, so that `resume` runs it again."""
        self.left[trial_id] = reason
        self.after_search.ended()
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
