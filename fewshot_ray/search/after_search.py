"""What follows a sweep's search: reruns with their controls, plain fine-tuning's own search, and the refit, as far as is known which."""

from __future__ import annotations

from collections.abc import Iterable

from fewshot_ray.search.job import Job
from fewshot_ray.search.jobs import after_search
from fewshot_ray.search.observers import Progress
from fewshot_ray.search.plain_search import PlainSearch
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.sections import FileSpec


class AfterSearch:
    """The jobs that follow the search. Which they are is read from the folder: at first, and again after each end of a trial."""

    def __init__(self, folder: SweepFolder, file: FileSpec, plain: PlainSearch | None, progress: Progress) -> None:
        self.folder = folder
        self.file = file
        self.plain = plain
        """Plain fine-tuning's own search, where it is asked for."""
        self.progress = progress
        self._announced: set[str] = set()
        """The jobs that the progress counts."""
        self._waiting: list[Job] | None = None
        """Those that are left to start; None where they must be read from the folder."""

    def next_job(self, begun: Iterable[str]) -> Job | None:
        """The next job, which counts as begun from now on; None where none is left to start. `begun`: ids of jobs that haven't ended."""
        if self._waiting is None:
            self._waiting = self._look(set(begun))
        if self._waiting:
            return self._waiting.pop(0)
        return None if self.plain is None else self.plain.next_job()

    def ended(self) -> None:
        """A trial has ended, by which others may be known."""
        self._waiting = None

    def _look(self, begun: set[str]) -> list[Job]:
        """The jobs that are left to start, by the folder; what is new of them is announced."""
        jobs = after_search(self.folder, self.file, plain_is_over=self.plain is not None and self.plain.is_over)
        self._announce(jobs)
        if self.plain is not None:
            was_wanted = self.plain.wanted
            self.plain.look(jobs)
            if self.plain.wanted and not was_wanted:
                self.progress.add_trials(self.plain.trials, done=self.plain.ended)
        return [job for job in jobs if job.id not in begun and not self._has_ended(job.id)]

    def _announce(self, jobs: Iterable[Job]) -> None:
        """Add the jobs to the number of trials in the progress."""
        new = {job.id for job in jobs} - self._announced
        self._announced |= new
        if new:
            self.progress.add_trials(len(new), done=sum(map(self._has_ended, new)))

    def _has_ended(self, trial_id: str) -> bool:
        record = self.folder.record(trial_id)
        return record is not None and record.state != "RUNNING"
