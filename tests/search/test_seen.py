"""What Optuna's Gaussian process sees of a search's trials."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from fewshot_ray.search.distributions import distribution
from fewshot_ray.search.frozen_trials import BEST, FAILED_BY
from fewshot_ray.search.seen import FAILED, relative, seen_by_gp
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
    nine, five, seven, failed = (one.values[0] for one in shown)
    assert nine == 0 < seven < five == failed
    assert [one.constraints for one in shown] == [
        {FAILED: -1.0, "kid": -1.0}, {FAILED: -1.0, "kid": 2.0}, {FAILED: -1.0, "kid": 2.0}, {FAILED: 1.0, "kid": 2.0}
    ]  # fmt: skip


def test_failures_alone_are_seen() -> None:
    """Oracle: by hand: nothing is known of the objectives."""
    shown = seen_by_gp(numbered(trial(TrialState.FAIL, user_attrs={FAILED_BY: "values"})), SPACE, [StudyDirection.MINIMIZE] * 2)
    assert [(one.values, one.constraints) for one in shown] == [([0.0, 0.0], {FAILED: 1.0})]


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_the_scale_knows_no_unit(count: int) -> None:
    """Oracle: the same values in another unit, from another zero; and their order, but for the quarter of the worst."""
    draw = random.Random(count)
    values, keeps = [draw.lognormvariate(0, 3) for _ in range(count)], [draw.random() < 0.7 for _ in range(count)]
    found = relative(values, keeps)
    assert found == pytest.approx(relative([7 - 3 + 1000 * value for value in values], keeps), rel=1e-6, abs=1e-9)
    ordered = [value for _, value in sorted(zip(values, found, strict=True))]
    assert ordered == sorted(ordered)
    assert len(set(ordered)) >= 0.7 * count
    best = min((value for value, kept in zip(values, keeps, strict=True) if kept), default=min(values))
    assert found[values.index(best)] == 0


def test_the_scale_tells_good_values_apart() -> None:
    """Oracle: by hand. Of 0, 1, ..., 10 and one of a million, 1 is as far from 0 as 5 from about twice that."""
    found = relative([*map(float, range(11)), 1e6], [True] * 12)
    assert found[1] == pytest.approx(math.log1p(1 / 0.55))
    assert found[-1] == found[9] < 3
    assert relative([4.0, 4.0], [True, True]) == [0.0, 0.0]
    assert relative([4.0, 4.0, 4.0, 5.0, 6.0], [True] * 5) == relative([4.0, 4.0, 4.0, 40.0, 76.0], [True] * 5)
