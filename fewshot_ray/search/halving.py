"""Asynchronous successive halving on the trials' own steps (Li et al. 2020, stopping variant)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from fewshot_ray.spec.sections import AshaSpec
from fewshot_ray.trial.ranking import Ranking


class SuccessiveHalving:
    """At rungs `grace_steps * reduction_factor^k` a trial continues if it is among the best `1 / reduction_factor` that reached the rung.

    Trials are compared by their best evaluation so far, since that is what a trial is ranked by: one that overfits later may still win.
    Those on a front before a trial's own count as better, so several objectives are compared together. Decisions depend only on the
    results in their order, so replaying the recorded ones rebuilds the rungs.
    """

    def __init__(self, config: AshaSpec, ranking: Ranking, *, steps: int) -> None:
        """`steps`: those of a trial of full length."""
        self.config = config
        self.ranking = ranking
        self.best: dict[str, Mapping[str, float]] = {}
        self.rungs: dict[int, dict[str, Mapping[str, float]]] = {rung: {} for rung in self._levels(steps)}

    def _levels(self, steps: int) -> Iterator[int]:
        level = self.config.grace_steps
        while level < steps:
            yield level
            level *= self.config.reduction_factor

    def report(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> bool:
        """Record an evaluation; returns whether the trial should stop. A value that isn't finite ranks last."""
        if self.ranking.is_better(metrics, self.best.get(trial_id)) or trial_id not in self.best:
            self.best[trial_id] = metrics
        stop = False
        for rung, reached in self.rungs.items():
            if step >= rung and trial_id not in reached:
                reached[trial_id] = self.best[trial_id]
                standings = self.ranking.standings(list(reached.values()))
                better = sum(other.front < standings[-1].front for other in standings)
                stop = better >= math.ceil(len(reached) / self.config.reduction_factor)
        return stop
