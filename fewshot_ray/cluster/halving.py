"""Asynchronous successive halving on the trials' own steps (Li et al. 2020, stopping variant)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fewshot_ray.spec.sections import AshaSpec


class SuccessiveHalving:
    """At rungs `grace_steps * reduction_factor^k` a trial goes on if it is among the best `1 / reduction_factor` that got there.

    Trials are compared by their best evaluation so far, since that is a trial's value: one that has overfitted since then may still win.
    The decisions are a function of the results in their order, so feeding the recorded ones anew rebuilds the rungs.
    """

    def __init__(self, config: AshaSpec, *, minimise: bool, steps: int) -> None:
        self.config = config
        self.sign = 1.0 if minimise else -1.0
        self.best: dict[str, float] = {}
        self.rungs: dict[int, dict[str, float]] = {rung: {} for rung in self._levels(steps)}

    def _levels(self, steps: int) -> Iterator[int]:
        level = self.config.grace_steps
        while level < steps:
            yield level
            level *= self.config.reduction_factor

    def report(self, trial_id: str, step: int, value: float) -> bool:
        """Record an evaluation; whether the trial should stop. A value that isn't finite ranks last."""
        turned = self.sign * value if math.isfinite(value) else math.inf
        self.best[trial_id] = min(turned, self.best.get(trial_id, math.inf))
        stop = False
        for rung, values in self.rungs.items():
            if step >= rung and trial_id not in values:
                values[trial_id] = self.best[trial_id]
                better = sum(other < values[trial_id] for other in values.values())
                stop = better >= math.ceil(len(values) / self.config.reduction_factor)
        return stop
