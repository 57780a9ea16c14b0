"""Successive halving against rungs worked by hand."""

from __future__ import annotations

import math
import random

import pytest

from fewshot_ray.search.halving import MOST_RIVALS, SuccessiveHalving, early_grace
from fewshot_ray.spec.sections import AshaSpec
from fewshot_ray.trial.ranking import Ranking


def halving(factor: int = 2, grace: int = 10, steps: int = 80, *, minimise: bool = True) -> SuccessiveHalving:
    config = AshaSpec(grace_steps=grace, reduction_factor=factor)
    return SuccessiveHalving(config, Ranking({"kid": "min" if minimise else "max"}, {"memorisation": ("<=", 0.2)}), steps=steps)


def report(asha: SuccessiveHalving, trial: str, step: int, value: float, memorisation: float = 0.0) -> bool:
    return asha.report(trial, step, {"kid": value, "memorisation": memorisation})


@pytest.mark.parametrize(
    ("factor", "grace", "steps", "rungs"),
    [(2, 10, 80, [10, 20, 40]), (3, 10, 90, [10, 30]), (3, 10, 91, [10, 30, 90]), (2, 10, 10, []), (4, 7, 8, [7])],
)
def test_rungs(factor: int, grace: int, steps: int, rungs: list[int]) -> None:
    """Oracle: grace * factor^k below the last step, where nothing is left to stop."""
    assert list(halving(factor, grace, steps).rungs) == rungs


def test_worked_by_hand() -> None:
    """Oracle: with factor 2, of n at a rung the best ceil(n / 2) go on; the first to come always does, equals do not beat each other."""
    asha = halving(steps=30)
    script = [
        ("a", 10, 5.0, False),  # 1 of 1
        ("b", 10, 6.0, True),  # 2nd of 2
        ("c", 10, 4.0, False),  # 1st of 3
        ("d", 10, 5.0, False),  # equal 2nd of 4, 2 go on
        ("e", 10, 5.5, True),  # 4th of 5, 3 go on
        ("a", 20, 1.0, False),
        ("c", 20, 2.0, True),  # 2nd of 2 at the next rung
        ("d", 20, 0.5, False),
        ("d", 25, 99.0, False),  # between rungs
    ]
    assert [report(asha, trial, step, value) for trial, step, value, _ in script] == [stop for *_, stop in script]


def test_a_trial_that_failed_is_no_rival() -> None:
    """Oracle: by hand. It led at both rungs; the next one is behind it while it runs, and goes on once it has failed."""
    asha = halving()
    assert not report(asha, "leads", 20, 1.0)
    assert report(asha, "behind", 10, 2.0)
    asha.failed("leads")
    assert not report(asha, "best", 10, 1.5)
    assert not report(asha, "best", 20, 1.5)
    assert [list(reached) for reached in asha.rungs.values()] == [["behind", "best"], ["best"], []]


def test_the_best_so_far_counts() -> None:
    """Oracle: a trial's value is its best evaluation, so one that was best at 10 and has overfitted at 20 still leads at that rung."""
    asha = halving()
    assert not report(asha, "early", 10, 1.0)
    assert not report(asha, "early", 20, 9.0)
    assert not report(asha, "late", 10, 1.0)
    assert report(asha, "late", 20, 1.5) is False
    assert [best["kid"] for best in asha.rungs[20].values()] == [1.0, 1.0]
    assert report(asha, "other", 20, 2.0)


def test_larger_may_be_better() -> None:
    """Oracle: the mirror image."""
    small, large = halving(), halving(minimise=False)
    draw = random.Random(0)
    for trial in range(20):
        value = draw.gauss(0, 1)
        assert report(small, str(trial), 10, value) == report(large, str(trial), 10, -value)


@pytest.mark.parametrize("minimise", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ranks_last(value: float, minimise: bool) -> None:
    """Oracle: it stops behind anything finite, and something finite never stops behind it."""
    asha = halving(minimise=minimise)
    assert not report(asha, "a", 10, 5.0)
    assert report(asha, "b", 10, value)
    asha = halving(minimise=minimise)
    assert not report(asha, "a", 10, value)
    assert not report(asha, "b", 10, 5.0)


def test_what_keeps_the_bounds_goes_on() -> None:
    """Oracle: by hand; of six the three that keep the bound go on, though each has a higher KID than all that don't."""
    asha = halving()
    for number in range(3):
        report(asha, f"past{number}", 10, 1.0 + number / 10, memorisation=0.9)
    for number in range(3):
        assert not report(asha, f"within{number}", 10, 5.0 - number, memorisation=0.1)
    assert not report(asha, "less past", 10, 3.0, memorisation=0.3)  # fourth of seven: less past the bound than the first three
    assert report(asha, "past", 10, 0.1, memorisation=0.4)


def test_the_best_so_far_keeps_the_bounds() -> None:
    """Oracle: a trial's value is its best evaluation within the bounds; later ones past them take nothing from it."""
    asha = halving()
    report(asha, "a", 10, 2.0, memorisation=0.1)
    report(asha, "a", 20, 0.1, memorisation=0.9)
    assert asha.rungs[20] == {"a": {"kid": 2.0, "memorisation": 0.1}}


def test_several_objectives_are_compared_by_fronts() -> None:
    """Oracle: by hand; of eight trials none that is best in one objective is stopped, and what others dominate is."""
    asha = SuccessiveHalving(AshaSpec(grace_steps=10, reduction_factor=2), Ranking({"kid": "min", "intra_distance": "max"}), steps=80)
    for number in range(4):
        assert not asha.report(f"front{number}", 10, {"kid": 1.0 + number, "intra_distance": 1.0 + number})
    assert not asha.report("diverse", 10, {"kid": 9.0, "intra_distance": 9.0})
    assert not asha.report("faithful", 10, {"kid": 0.1, "intra_distance": 0.1})
    assert asha.report("dominated", 10, {"kid": 9.5, "intra_distance": 0.0})


def test_replay_rebuilds_the_state() -> None:
    """Oracle: the instance that saw it all live, at every point of a random course of eight trials at a time."""
    draw = random.Random(1)
    live = halving(3, 2, 30)
    recorded: list[tuple[str, int, float]] = []
    steps = {f"t{number}": 0 for number in range(8)}
    while steps:
        trial = draw.choice(list(steps))
        steps[trial] += 1
        event = (trial, steps[trial], draw.gauss(0, 1))
        recorded.append(event)
        stop = report(live, *event)
        again = halving(3, 2, 30)
        decisions = [report(again, *earlier) for earlier in recorded]
        assert again.rungs == live.rungs
        assert again.best == live.best
        assert decisions[-1] == stop
        if stop or steps[trial] == 30:
            del steps[trial]
    assert any(len(values) > 1 for values in live.rungs.values())


def test_rivals_are_the_latest_and_the_best() -> None:
    """Oracle: by hand. Early trials that were worse don't count for ever, the best one does; and a rung stays small."""
    asha = halving()
    report(asha, "best", 10, 0.0)
    for number in range(100):
        report(asha, f"early {number}", 10, 9.0)
    assert not report(asha, "middling", 10, 5.0)
    for number in range(MOST_RIVALS - 1):
        report(asha, f"late {number}", 10, 1.0)
    assert report(asha, "middling again", 10, 5.0)
    assert len(asha.rungs[10]) == MOST_RIVALS
    assert "best" in asha.rungs[10]
    assert not report(asha, "middling", 15, 5.0)  # has passed it


@pytest.mark.parametrize(("grace", "warned"), [(24, True), (25, False)])
def test_a_grace_under_a_quarter_of_the_steps_warns(grace: int, warned: bool) -> None:
    """Oracle: by hand."""
    line = early_grace(AshaSpec(grace_steps=grace), 100)
    assert (line is not None) == warned
    if line is not None:
        assert "grace_steps: trials are stopped after 24 of 100 steps" in line
        assert "at least 25" in line
