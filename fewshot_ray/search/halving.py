"""Asynchronous successive halving on the trials' own steps (Li et al. 2020, stopping variant)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Literal

from fewshot_ray.spec.sections import AshaSpec
from fewshot_ray.trial.ranking import Bounds, Merit, Ranking


class SuccessiveHalving:
    """At rungs `grace_steps * reduction_factor^k` a trial continues if it is among the best `1 / reduction_factor` that reached the rung.

    Trials are compared by their best evaluation so far, since that is what a trial is ranked by: one that overfits later may still win.
    Feasible trials rank before those that violate constraints; then `config.metric` counts. Decisions depend only on the results in their
    order, so replaying the recorded ones rebuilds the rungs.
    """

    def __init__(self, config: AshaSpec, *, direction: Literal["min", "max"], steps: int, bounds: Bounds | None = None) -> None:
        self.config = config
        self.ranking = Ranking({config.metric: direction}, bounds or {})
        self.best: dict[str, Merit] = {}
        self.rungs: dict[int, dict[str, Merit]] = {rung: {} for rung in self._levels(steps)}

    def _levels(self, steps: int) -> Iterator[int]:
        level = self.config.grace_steps
        while level < steps:
            yield level
            level *= self.config.reduction_factor

    def report(self, trial_id: str, step: int, metrics: Mapping[str, float]) -> bool:
        """Record an evaluation; returns whether the trial should stop. A value that isn't finite ranks last."""
        merit = self.ranking.merit(metrics)
        self.best[trial_id] = min(merit, self.best.get(trial_id, merit))
        stop = False
        for rung, values in self.rungs.items():
            if step >= rung and trial_id not in values:
                values[trial_id] = self.best[trial_id]
                better = sum(other < values[trial_id] for other in values.values())
                stop = better >= math.ceil(len(values) / self.config.reduction_factor)
        return stop
