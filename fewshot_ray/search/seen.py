"""What Optuna's samplers see of a search's trials.

The study says what happened to each trial; its samplers learn nothing from FAIL, the Gaussian process nothing from PRUNED either. So they
are given a study in memory in which

- a stopped trial is complete at its best evaluation, as a trial's value is its best one;
- a trial that failed by its values (a loss that isn't finite, settings that don't fit the model) is complete and violates a constraint, by
  more than any that was measured;
- a trial whose worker crashed isn't there: that says nothing of its values.

For the Gaussian process it differs in more, as its model asks for it:

- Every trial has every value of the space: one that it doesn't use is in the middle of its range, as in SMAC (Hutter et al. 2011). Optuna
  itself would draw a value that some trials lack at random.
- All trials have the same constraints, and every number is finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from fewshot_ray.search.distributions import at_quantile, distribution, to_optuna
from fewshot_ray.search.frozen_trials import BEST, FAILED_BY
from fewshot_ray.spec.space import Space

BY_VALUES = "values"
FAILED = "failed"
"""Name of the constraint that a trial violates which failed by its values."""


def seen(trial: FrozenTrial, objectives: int) -> FrozenTrial | None:
    """A trial as TPE and NSGA-II see it; None where they don't. `objectives`: their number."""
    if trial.state is TrialState.RUNNING:
        return create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
    if _has_failed_by_values(trial):
        values, constraints = [0.0] * objectives, {FAILED: math.inf}  # those that violate one are ordered by the sum of what is above 0
    elif (measured := _measured(trial)) is not None:
        values, constraints = measured, dict(trial.constraints)
    else:
        return None
    return create_trial(values=values, params=trial.params, distributions=trial.distributions, constraints=constraints)


def seen_by_gp(trials: Iterable[FrozenTrial], space: Space, directions: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials that the Gaussian process sees, as it does."""
    trials = list(trials)
    failed = [trial for trial in trials if _has_failed_by_values(trial)]
    measured = [(trial, values) for trial in trials if (values := _measured(trial)) is not None]
    columns = list(zip(*(values for _, values in measured), strict=True))
    bad = [(min if direction is StudyDirection.MAXIMIZE else max)(column) for direction, column in zip(directions, columns, strict=False)]
    worst = bad or [0.0] * len(directions)
    constraints = _Constraints(trial for trial, _ in measured)
    shown = [
        *((trial, values, constraints.of(trial)) for trial, values in measured),
        *((trial, worst, constraints.worst()) for trial in failed),
    ]
    extra = {FAILED: -1.0} if failed else {}
    ended = [_whole(trial, space, values=values, constraints={**extra, **amounts}) for trial, values, amounts in shown]
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    return [*ended, *(_whole(trial, space, state=TrialState.RUNNING) for trial in running)]


class _Constraints:
    """How far trials violate constraints; what isn't finite counts as the most that was measured."""

    def __init__(self, trials: Iterable[FrozenTrial]) -> None:
        self.most: dict[str, float] = {}
        for trial in trials:
            for name, amount in trial.constraints.items():
                self.most[name] = max(self.most.get(name, -math.inf), amount if math.isfinite(amount) else -math.inf)
        self.most = {name: amount if math.isfinite(amount) else 1.0 for name, amount in self.most.items()}

    def of(self, trial: FrozenTrial) -> dict[str, float]:
        return {name: min(trial.constraints.get(name, math.inf), most) for name, most in self.most.items()}

    def worst(self) -> dict[str, float]:
        """Of a trial that failed by its values."""
        return {**self.most, FAILED: 1.0}


def _whole(trial: FrozenTrial, space: Space, **said: Any) -> FrozenTrial:
    """A trial with what is said of it, that has a parameter for every value of the space."""
    missing = {name: one.range for name, one in space.by_name.items() if name not in trial.params}
    params = {name: to_optuna(range_, at_quantile(range_, 0.5)) for name, range_ in missing.items()}
    distributions = {name: distribution(range_) for name, range_ in missing.items()}
    return create_trial(params={**trial.params, **params}, distributions={**trial.distributions, **distributions}, **said)


def _has_failed_by_values(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and trial.user_attrs.get(FAILED_BY) == BY_VALUES


def _measured(trial: FrozenTrial) -> list[float] | None:
    """The objectives of a trial that is complete, or of the best evaluation of one that was stopped."""
    if trial.state is TrialState.COMPLETE:
        return list(trial.values)
    if trial.state is TrialState.PRUNED and trial.user_attrs.get(BEST):
        return [float(value) for value in trial.user_attrs[BEST]]
    return None
