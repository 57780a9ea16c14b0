"""The evaluations and ends of a sweep's trials in their order, which decides who ends before the last step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace
from operator import itemgetter

from fewshot_ray.search.frozen_trials import EARLIER, SAMPLER
from fewshot_ray.search.job import Job
from fewshot_ray.search.stopping import Stop, Stopping
from fewshot_ray.search.sweep_folder import EvaluationRow, State, SweepFolder

TICK_SEC = 1e-6
"""Resolution of the times on record."""


class Evaluations:
    """Gives each evaluation and each end a later time than the one before, by which a resumed sweep sees them in the same order."""

    def __init__(self, folder: SweepFolder, stopping: Stopping, *, every: int) -> None:
        """`every`: steps between evaluations."""
        self.folder = folder
        self.stopping = stopping
        self.every = every
        self._last_sec = 0.0
        """The latest time that was given, in seconds since 1970."""

    def now_sec(self) -> float:
        """The time, later than all before, also where the clock was set back."""
        self._last_sec = max(round(time.time(), 6), round(self._last_sec + TICK_SEC, 6))
        return self._last_sec

    def add(self, job: Job, row: EvaluationRow) -> EvaluationRow:
        """Put an evaluation on record; returns it with its time."""
        row = replace(row, time=self.now_sec())
        self.folder.append_row(job.id, row)
        return row

    def replay(self, jobs: Iterable[Job]) -> dict[str, Stop]:
        """Take what is on record of these in its order; returns why those trials end that do at their latest evaluation."""
        stops: dict[str, Stop | None] = {}
        events = sorted((event for job in jobs for event in self._events(job)), key=itemgetter(0))
        for time_sec, job, happened in events:
            self._last_sec = max(self._last_sec, time_sec)
            if isinstance(happened, EvaluationRow):
                stops[job.id] = self.stop(job, happened)
            else:
                self.stopping.ended(job.id, happened)
        return {trial_id: stop for trial_id, stop in stops.items() if stop is not None}

    def _events(self, job: Job) -> list[tuple[float, Job, EvaluationRow | State]]:
        """The evaluations of a trial with their times, and its end, where it has ended: after the last of them."""
        record, rows = self.folder.record(job.id), self.folder.rows(job.id)
        events: list[tuple[float, Job, EvaluationRow | State]] = [(row.time, job, row) for row in rows]
        if record is not None and record.ended_sec is not None:
            events.append((max([record.ended_sec, *(row.time for row in rows)]), job, record.state))
        return events

    def are_all_there(self, job: Job) -> bool:
        """Whether the last one of a job is on record."""
        rows = self.folder.rows(job.id)
        return bool(rows) and rows[-1].step >= job.last_step

    def stop(self, job: Job, row: EvaluationRow) -> Stop | None:
        """Why a trial ends at an evaluation that is on record; None where it goes on."""
        searched = job.kind == "search"
        return self.stopping.report(
            job.id,
            row,
            looks=math.ceil(job.last_step / self.every),
            last_step=job.last_step,
            searched=searched,
            # The search is compared with preset and plain fine-tuning.
            may_lose=searched and job.origin in (SAMPLER, EARLIER),
        )
