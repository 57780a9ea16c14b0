"""Decides which checkpoints a sweep keeps, and removes the others: a thousand trials must not fill the disk."""

from __future__ import annotations

from fewshot_ray.search.frozen_trials import EARLIER, SAMPLER
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.training.checkpoint import checkpoint_name, saved_steps
from fewshot_ray.trial.ranking import Ranking

CHECKPOINTS = "checkpoints"


class KeptCheckpoints:
    """Keeps the best checkpoint of the best `search.keep_checkpoints` trials, and of preset, plain fine-tuning, reruns and refit.

    With several objectives also those of the Pareto front (of trials with equal metrics the first). All other trials' checkpoints are
    removed as soon as they have ended.
    """

    def __init__(self, folder: SweepFolder, search: SearchSpec) -> None:
        self.folder = folder
        self.search = search
        self.ranking = Ranking.of(search)
        self.best: list[TrialRecord] = []
        self.best_plain: TrialRecord | None = None
        """The best trial of plain fine-tuning's own search."""
        self.dropped: set[str] = set()

    def ended(self, record: TrialRecord) -> None:
        """Keep or remove the checkpoints of a trial that has ended, now or before a resume."""
        if record.state != "COMPLETE":
            self._drop(record.id)
            return
        self._keep_best_step(record)
        if record.kind == "plain":
            self._keep_best_plain(record)
        if record.kind != "search" or record.origin not in (SAMPLER, EARLIER):
            return
        trials = sorted([*self.best, record], key=lambda trial: trial.number or 0)
        values = [trial.values or {} for trial in trials]
        standings = enumerate(self.ranking.standings(values))
        kept = {index for index, standing in standings if standing.place < self.search.keep_checkpoints} | {*self.ranking.front(values)}
        self.best = [trials[index] for index in sorted(kept)]
        for index in {*range(len(trials))} - kept:
            self._drop(trials[index].id)

    def _keep_best_plain(self, record: TrialRecord) -> None:
        trials = sorted([record, *([self.best_plain] if self.best_plain is not None else [])], key=lambda trial: trial.number or 0)
        self.best_plain = trials[self.ranking.best_index([trial.values or {} for trial in trials]) or 0]
        for trial in trials:
            if trial is not self.best_plain:
                self._drop(trial.id)

    def tidy(self) -> None:
        """Remove dropped trials' checkpoints again at the sweep's end: a stopped worker may have written one since."""
        for trial_id in self.dropped:
            self._remove(trial_id)

    def _drop(self, trial_id: str) -> None:
        self.dropped.add(trial_id)
        self._remove(trial_id)

    def _remove(self, trial_id: str) -> None:
        (self.folder.trial(trial_id) / CHECKPOINTS).remove()

    def _keep_best_step(self, record: TrialRecord) -> None:
        """Remove all checkpoints except the best step's: an ended trial isn't resumed, only exported."""
        checkpoints = self.folder.trial(record.id) / CHECKPOINTS
        saved = saved_steps(checkpoints)
        for step in saved if record.best_step in saved else ():
            if step != record.best_step:
                checkpoints.remove(checkpoint_name(step))
