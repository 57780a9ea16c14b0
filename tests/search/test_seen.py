"""What Optuna's Gaussian process sees of a search's trials."""

from __future__ import annotations

import math
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from fewshot_ray.search.distributions import distribution
from fewshot_ray.search.frozen_trials import BEST, FAILED_BY
from fewshot_ray.search.seen import FAILED, seen_by_gp
from fewshot_ray.spec.alternatives import choice_of_methods
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.space import Space

SPACE = Space(
    {
        "method": choice_of_methods(["sdft", {"ant": {"noise_steps": IntRange(1, 9)}}]),
        "train": {"lr": FloatRange(1e-4, 1e-2, log=True), "params": Choice(("full", "bitfit", [1]))},
    }
)


def trial(state: TrialState, method: str = "sdft", **said: Any) -> FrozenTrial:
    params = {"method": method, "train.lr": 1e-4, "train.params": "index 2"} | ({"method.ant.noise_steps": 2} if method == "ant" else {})
    distributions = {name: distribution(SPACE.by_name[name].range) for name in params}
    return create_trial(state=state, params=params, distributions=distributions, **said)


def numbered(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, one in enumerate(trials):
        one.number = number
    return list(trials)


def test_every_trial_has_every_value() -> None:
    """Oracle: by hand. What sdft doesn't use is in the middle of 1 to 9; a method's own value stays."""
    trials = numbered(trial(TrialState.COMPLETE, values=[1.0]), trial(TrialState.COMPLETE, "ant", values=[2.0]), trial(TrialState.RUNNING))
    shown = seen_by_gp(trials, SPACE, [StudyDirection.MINIMIZE])
    assert [one.params["method.ant.noise_steps"] for one in shown] == [5, 2, 5]
    assert [one.params["train.params"] for one in shown] == ["index 2"] * 3
    assert [one.state for one in shown] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
    assert all(one.params.keys() == SPACE.by_name.keys() == one.distributions.keys() for one in shown)


def test_each_end_is_seen_as_what_it_says_of_the_values() -> None:
    """Oracle: by hand. The larger the better: 9 is; a stopped trial is at its best one, a failed one as bad as the worst, no crash."""
    trials = numbered(
        trial(TrialState.COMPLETE, values=[9.0], constraints={"kid": -1.0}),
        trial(TrialState.FAIL, user_attrs={FAILED_BY: "worker"}),
        trial(
            TrialState.PRUNED, user_attrs={BEST: [5.0]}, intermediate_values={1: 5.0, 2: 1.0}, values=[1.0], constraints={"kid": math.inf}
        ),
        trial(TrialState.FAIL, user_attrs={FAILED_BY: "values"}),
        trial(TrialState.COMPLETE, values=[7.0], constraints={"kid": 2.0}),
        trial(TrialState.PRUNED),
    )
    shown = seen_by_gp(trials, SPACE, [StudyDirection.MAXIMIZE])
    assert all(one.state is TrialState.COMPLETE for one in shown)
    assert [one.values for one in shown] == [[9.0], [5.0], [7.0], [5.0]]
    assert [one.constraints for one in shown] == [
        {FAILED: -1.0, "kid": -1.0}, {FAILED: -1.0, "kid": 2.0}, {FAILED: -1.0, "kid": 2.0}, {FAILED: 1.0, "kid": 2.0}
    ]  # fmt: skip


def test_failures_alone_are_seen() -> None:
    """Oracle: by hand: nothing is known of the objectives."""
    shown = seen_by_gp(numbered(trial(TrialState.FAIL, user_attrs={FAILED_BY: "values"})), SPACE, [StudyDirection.MINIMIZE] * 2)
    assert [(one.values, one.constraints) for one in shown] == [([0.0, 0.0], {FAILED: 1.0})]
