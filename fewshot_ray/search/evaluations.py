"""The evaluations of a sweep's trials: put on record in their order, which decides who ends before the last step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

from fewshot_ray.search.frozen_trials import EARLIER, SAMPLER
from fewshot_ray.search.job import Job
from fewshot_ray.search.stopping import Stop, Stopping
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder


class Evaluations:
    """Gives each evaluation a later time than the one before, by which a resumed sweep sees them in the same order."""

    def __init__(self, folder: SweepFolder, stopping: Stopping, *, every: int) -> None:
        """`every`: steps between evaluations."""
        self.folder = folder
        self.stopping = stopping
        self.every = every
        self._last_sec = 0.0
        """Time of the latest evaluation, in seconds since 1970."""

    def add(self, job: Job, row: EvaluationRow) -> EvaluationRow:
        """Put an evaluation on record; returns it with its time."""
        self._last_sec = max(time.time(), math.nextafter(self._last_sec, math.inf))  # also where the clock was set back
        row = replace(row, time=self._last_sec)
        self.folder.append_row(job.id, row)
        return row

    def replay(self, jobs: Iterable[Job]) -> dict[str, Stop]:
        """Take what is on record of these in its order; returns why those trials end that do at their latest evaluation."""
        stops: dict[str, Stop | None] = {}
        timed = [(row.time, job, row) for job in jobs for row in self.folder.rows(job.id)]
        for time_sec, job, row in sorted(timed, key=lambda item: item[0]):
            self._last_sec = max(self._last_sec, time_sec)
            stops[job.id] = self.stop(job, row)
        return {trial_id: stop for trial_id, stop in stops.items() if stop is not None}

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
