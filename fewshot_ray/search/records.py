"""Puts trials on record as they begin and end: in their folders, in the study, and their checkpoints kept or removed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from optuna.trial import TrialState

from fewshot_ray.search.frozen_trials import Result
from fewshot_ray.search.job import Job
from fewshot_ray.search.kept_checkpoints import KeptCheckpoints
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import EvaluationRow, FailedBy, State, SweepFolder, TrialRecord
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.ranking import Ranking


class Records:
    """The records of a sweep's trials, written by its driver."""

    def __init__(self, folder: SweepFolder, file: FileSpec, study: Study, kept: KeptCheckpoints, plain_study: Study | None = None) -> None:
        self.folder = folder
        self.file = file
        self.study = study
        self.plain_study = plain_study
        """Of plain fine-tuning's own search, where there is one."""
        self.kept = kept
        self.ranking = Ranking.of(file.search)

    def begin(self, job: Job) -> None:
        """Record a trial as running; one that was begun before keeps the time."""
        before = self.folder.record(job.id)
        record = TrialRecord(
            id=job.id,
            number=job.number,
            kind=job.kind,
            origin=job.origin,
            label=job.label,
            seed=job.seed,
            state="RUNNING",
            params=job.params,
            started=before.started if before else _now(),
        )
        self.folder.write_trial(record)

    def leave_open(self, trial_id: str, reason: str) -> None:
        """Record why a trial that counts as running can't go on for now."""
        self.folder.write_trial(replace(self._record(trial_id), error=reason))

    def settle(
        self,
        job: Job,
        state: State,
        problem: str | None = None,
        failed_by: FailedBy | None = None,
        stopped: str | None = None,
        *,
        at_sec: float,
    ) -> TrialRecord:
        """Record how a trial ended, with its best evaluation; one without any finite objective has failed.

        `at_sec`: when it ended, in seconds since 1970, to the microsecond.
        """
        rows = self.folder.rows(job.id)
        of_a_refit = len(rows) - 1 if rows else None
        best = self.ranking.best_index([row.metrics for row in rows]) if job.refit_steps is None else of_a_refit
        if best is None and state != "FAIL":
            state, problem, failed_by = "FAIL", f"no evaluation has a finite {next(iter(self.file.search.objectives))}", "values"
        settled = replace(
            self._record(job.id),
            state=state,
            best_step=None if best is None else rows[best].step,
            values=None if best is None else rows[best].metrics,
            error=problem,
            failed_by=failed_by,
            stopped=stopped,
            train_sec=_train_sec(rows, job.tree.get("train", {}).get("batch_size", self.file.train.batch_size) * job.folds),
            ended=datetime.fromtimestamp(at_sec, UTC).isoformat(timespec="microseconds"),
        )
        self.folder.write_trial(settled)
        self.tell(settled, rows)
        self.kept.ended(settled)
        return settled

    def tell(self, record: TrialRecord, rows: Sequence[EvaluationRow] | None = None) -> None:
        """Tell its study how a trial of a search ended. The journal isn't uploaded, as the record says it all."""
        study = self.study if record.kind == "search" else self.plain_study
        if record.number is None or study is None:
            return
        excess = self.ranking.violations(record.values) if record.values and record.state != "FAIL" else {}
        rows = self.folder.rows(record.id) if rows is None else rows
        result = Result(TrialState[record.state], record.values, rows, excess, record.error, record.failed_by, record.stopped)
        study.finish(record.number, result)

    def _record(self, trial_id: str) -> TrialRecord:
        record = self.folder.record(trial_id)
        assert record is not None
        return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _train_sec(rows: Iterable[EvaluationRow], images_a_step: int) -> float:
    seconds, before = 0.0, 0
    for row in rows:
        seconds += (row.step - before) * images_a_step / row.images_per_sec if row.images_per_sec else 0.0
        before = row.step
    return round(seconds, 3)
