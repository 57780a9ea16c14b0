"""Asynchronous successive halving on the trials' own steps (Li et al. 2020, stopping variant)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from fewshot_ray.spec.sections import AshaSpec
from fewshot_ray.trial.ranking import Ranking

MOST_RIVALS = 27
"""Number of trials that a trial is compared with at a rung: the latest to reach it, and the best before them."""


EARLY = 1 / 4
"""Share of the steps before which an evaluation says little of the best one: it favours large learning rates."""


def early_grace(config: AshaSpec, steps: int) -> str | None:
    """A warning where trials are stopped by evaluations that say little."""
    if config.grace_steps >= EARLY * steps:
        return None
    return (
        f"search.scheduler.asha.grace_steps: trials are stopped after {config.grace_steps} of {steps} steps, where large learning rates "
        f"look best; at least {math.ceil(EARLY * steps)}, or search.scheduler.race, is right"
    )


class SuccessiveHalving:
    """At rungs `grace_steps * reduction_factor^k` a trial continues if it is among the best `1 / reduction_factor` of its rivals there.

    These are the latest that reached the rung and the best one before them, as a search proposes better ones over time.

    Trials are compared by their best evaluation so far, since that is what a trial is ranked by: one that overfits later may still win.
    Those on a front before a trial's own count as better, so several objectives are compared together. A trial that failed can't win, so it
    leaves its rungs. Decisions depend only on the results and failures in their order, so replaying the recorded ones rebuilds the rungs.
    """

    def __init__(self, config: AshaSpec, ranking: Ranking, *, steps: int) -> None:
        """`steps`: those of a trial of full length."""
        self.config = config
        self.ranking = ranking
        self.steps = steps
        self.best: dict[str, Mapping[str, float]] = {}
        self.passed: dict[str, int] = {}
        """The highest rung that each trial has reached."""
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
            if step >= rung > self.passed.get(trial_id, 0):
                self.passed[trial_id] = rung
                reached[trial_id] = self.best[trial_id]
                standings = self.ranking.standings(list(reached.values()))
                better = sum(other.front < standings[-1].front for other in standings)
                stop = better >= math.ceil(len(reached) / self.config.reduction_factor)
                if len(reached) > MOST_RIVALS:
                    del reached[next(name for name, standing in zip(reached, standings, strict=True) if standing.place > 0)]
        return stop

    def failed(self, trial_id: str) -> None:
        """The trial has failed: others aren't compared with it any more."""
        self.best.pop(trial_id, None)
        self.passed.pop(trial_id, None)
        for reached in self.rungs.values():
            reached.pop(trial_id, None)
