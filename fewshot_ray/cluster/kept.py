"""Whose checkpoints a sweep keeps: a thousand trials must not fill the disk."""

from __future__ import annotations

from fewshot_ray.cluster.study import SAMPLER
from fewshot_ray.report.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.training.checkpoint import checkpoint_name, saved_steps
from fewshot_ray.trial.best import merit

CHECKPOINTS = "checkpoints"


class KeptCheckpoints:
    """The best `search.keep_checkpoints` trials keep their best checkpoint, as do preset, plain fine-tuning, reruns and the refit.

    All others' are removed as soon as they have ended.
    """

    def __init__(self, folder: SweepFolder, search: SearchSpec) -> None:
        self.folder = folder
        self.search = search
        self.best: list[TrialRecord] = []
        self.dropped: set[str] = set()

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended, or had before a resume."""
        if record.state != "COMPLETE":
            self._drop(record.id)
            return
        self._keep_best_step(record)
        if record.kind != "search" or record.origin != SAMPLER:
            return
        self.best = sorted([*self.best, record], key=self._order)
        for worse in self.best[self.search.keep_checkpoints :]:
            self._drop(worse.id)
        self.best = self.best[: self.search.keep_checkpoints]

    def tidy(self) -> None:
        """Once more at the end: a worker that was stopped may have written after its trial was settled."""
        for trial_id in self.dropped:
            self._remove(trial_id)

    def _order(self, record: TrialRecord) -> tuple[float, float, int]:
        return *merit(record.values or {}, self.search), record.number or 0

    def _drop(self, trial_id: str) -> None:
        self.dropped.add(trial_id)
        self._remove(trial_id)

    def _remove(self, trial_id: str) -> None:
        (self.folder.trial(trial_id) / CHECKPOINTS).remove()

    def _keep_best_step(self, record: TrialRecord) -> None:
        """A trial that has ended never goes on: only what is exported of it is needed."""
        checkpoints = self.folder.trial(record.id) / CHECKPOINTS
        saved = saved_steps(checkpoints)
        for step in saved if record.best_step in saved else ():
            if step != record.best_step:
                checkpoints.remove(checkpoint_name(step))
