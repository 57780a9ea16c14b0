"""Whose checkpoints a sweep keeps: a thousand trials must not fill the disk."""

from __future__ import annotations

from collections.abc import Sequence

from fewshot_ray.cluster.study import SAMPLER
from fewshot_ray.report.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.training.checkpoint import checkpoint_name, saved_steps
from fewshot_ray.trial.ranking import Merit, Ranking, fronts, ranked

CHECKPOINTS = "checkpoints"


class KeptCheckpoints:
    """The best `search.keep_checkpoints` trials keep their best checkpoint, as do preset, plain fine-tuning, reruns and the refit.

    With several objectives, so does all of the Pareto front, of trials that are equal in it the first. All others' are removed as soon as
    they have ended.
    """

    def __init__(self, folder: SweepFolder, search: SearchSpec) -> None:
        self.folder = folder
        self.search = search
        self.ranking = Ranking.of(search)
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
        trials = sorted([*self.best, record], key=lambda trial: trial.number or 0)
        merits = [self.ranking.merit(trial.values or {}) for trial in trials]
        kept = {*ranked(merits)[: self.search.keep_checkpoints], *_front(merits)}
        self.best = [trials[index] for index in sorted(kept)]
        for index in {*range(len(trials))} - kept:
            self._drop(trials[index].id)

    def tidy(self) -> None:
        """Once more at the end: a worker that was stopped may have written after its trial was settled."""
        for trial_id in self.dropped:
            self._remove(trial_id)

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


def _front(merits: Sequence[Merit]) -> list[int]:
    """The first of every merit that none dominates."""
    first = {merit: index for index, merit in reversed(list(enumerate(merits)))}
    return [index for index, front in enumerate(fronts(merits)) if front == 0 and first[merits[index]] == index]
