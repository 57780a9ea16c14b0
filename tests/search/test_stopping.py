"""When a trial ends before its last step: it has turned, or it is behind the best one."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from fewshot_ray.search.curves import Noise, Point, best_of, has_turned, is_behind, is_worse
from fewshot_ray.search.stopping import Stop, Stopping
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document
from fewshot_ray.trial.ranking import Ranking
from tests.search import synthetic

HELD_OUT = Ranking({"holdout_loss": "min"})
LOOKS = 10


def images(mean: float, seed: int, spread: float = 0.3) -> list[float]:
    """The losses of ten images with that mean; the images differ more than the evaluations do."""
    level = random.Random(0)
    own = random.Random(seed)
    losses = [mean + level.uniform(-spread, spread) + own.gauss(0, 0.002) for _ in range(10)]
    return [loss + mean - sum(losses) / 10 for loss in losses]


def row(step: int, mean: float, **metrics: float) -> EvaluationRow:
    """An evaluation with a held-out loss by image."""
    return EvaluationRow(step, 0.0, {"holdout_loss": mean, **metrics}, 0.0, 0.0, 0.0, 1.0, images(mean, round(1e6 * mean) + step))


def run(stopping: Stopping, trial_id: str, means: Sequence[float], **more: Sequence[float]) -> tuple[int, Stop | None]:
    """Report a curve until it is stopped; returns the number of its evaluations, and why."""
    for at, mean in enumerate(means):
        metrics = {name: values[at] for name, values in more.items()}
        last = at == len(means) - 1
        step = 20 * (at + 1)
        stop = stopping.report(
            trial_id, row(step, mean, **metrics), looks=LOOKS, last_step=20 * len(means), searched=True, may_lose=trial_id != "plain"
        )
        if stop is not None or last:
            stopping.ended(trial_id, "COMPLETE" if stop is None or stop.complete else "PRUNED")
            return at + 1, stop
    raise AssertionError


def test_the_test_by_image_is_the_paired_t_test() -> None:
    """Oracle: scipy's one-sided paired t-test, on both sides of the level."""
    for seed in range(40):
        one, other = images(0.1, seed), images(0.1 - 0.001 * (seed % 4), seed + 100)
        p = stats.ttest_rel(one, other, alternative="greater").pvalue
        a, b = Point(1, float(np.mean(one)), one), Point(2, float(np.mean(other)), other)
        if a.value > b.value:
            assert is_worse(a, b, p * 1.01, None)
            assert not is_worse(a, b, p * 0.99, None)


def test_noise_of_a_metric_is_found() -> None:
    """Oracle: the deviation that curves were made with, although they bend; none from a few evaluations."""
    draw = np.random.default_rng(0)
    noise = Noise()
    for _ in range(30):
        curve = [Point(step, 5 * math.exp(-step / 5) + 2 + 0.01 * step**2 + draw.normal(0, 0.5)) for step in range(12)]
        for end in range(1, 13):
            noise.add(curve[:end])
    assert noise.deviation() == pytest.approx(0.5, rel=0.15)
    assert Noise().deviation() is None


def test_a_curve_that_has_turned_ends_complete() -> None:
    """Oracle: by hand. Two worse evaluations end it, one doesn't; without the rule it goes on."""
    means = [0.2, 0.12, 0.1, 0.13, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22]
    assert run(Stopping(HELD_OUT, early=0.05), "a", means) == (5, Stop("turned: its best evaluation was at step 60", complete=True))
    bounce = [0.2, 0.12, 0.1, 0.13, 0.09, 0.085, 0.08, 0.075, 0.07, 0.065]
    assert run(Stopping(HELD_OUT, early=0.05), "a", bounce) == (10, None)
    assert run(Stopping(HELD_OUT), "a", means) == (10, None)


def test_an_objective_by_noise_level_is_tested_by_its_own_images() -> None:
    """Oracle: the same curve as a held-out loss. The rows' held-out losses fall on; where there is no value by image nothing is known."""
    means = [0.2, 0.12, 0.1, 0.13, 0.12, 0.14, 0.16, 0.18, 0.2, 0.22]

    def ends(*, by_image: bool) -> list[Stop | None]:
        stopping, found = Stopping(Ranking({"relative_content": "min"}), early=0.05), []
        for at, mean in enumerate(means[:5]):
            one = row(20 * (at + 1), 1 - 0.1 * at, relative_content=mean)
            own = replace(one, by_image={"relative_content": row(one.step, mean).image_losses} if by_image else {})
            found.append(stopping.report("a", own, looks=LOOKS, last_step=200, searched=True, may_lose=False))
        return found

    assert ends(by_image=True) == [None] * 4 + [Stop("turned: its best evaluation was at step 60", complete=True)]
    assert ends(by_image=False) == [None] * 5


def test_a_flat_curve_has_turned_as_often_as_the_level_says() -> None:
    """Oracle: of 400 curves whose evaluations differ by noise alone, at most 5 % (and three standard errors) turn."""
    turned = 0
    for seed in range(400):
        draw = np.random.default_rng(seed)
        losses = 0.1 + draw.normal(0, 0.3, 10) + draw.normal(0, 0.01, (LOOKS, 10))
        curve = [Point(20 * at, float(one.mean()), one.tolist()) for at, one in enumerate(losses)]
        turned += any(has_turned(curve[:end], 0.05 / LOOKS, None) for end in range(1, LOOKS + 1))
    assert turned <= 400 * 0.05 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_a_metric_of_samples_turns_by_its_own_noise() -> None:
    """Oracle: by hand. A KID that rises by far more than its noise ends the trial, one that rises within it doesn't."""
    kid = Ranking({"kid": "min"})
    draw = random.Random(0)
    steady = [5 + draw.gauss(0, 0.3) for _ in range(20)]

    def rising(by: float) -> list[float]:
        return [5 - at + draw.gauss(0, 0.3) if at < 4 else 2 + by * (at - 3) + draw.gauss(0, 0.3) for at in range(10)]

    for by, ends in ((0.05, False), (3.0, True)):
        stopping = Stopping(kid, early=0.05)
        run(stopping, "noise", [0.1] * 20, kid=steady)
        evaluations, stop = run(stopping, "a", [0.1] * 10, kid=rising(by))
        assert (stop is not None, evaluations < 10) == (ends, ends)


def test_a_trial_that_is_behind_is_pruned() -> None:
    """Oracle: by hand, at .4 of the latest rate in log(steps), or five times. Plain fine-tuning goes on, as do those that catch up."""
    best = [0.15, 0.12, 0.11, 0.1, 0.098]
    stopping = Stopping(HELD_OUT, race=0.05)
    assert run(stopping, "best", best) == (5, None)
    assert run(stopping, "behind", [0.16, 0.13, 0.12, 0.11, 0.105]) == (3, Stop("race: behind best", complete=False))
    assert run(stopping, "plain", [0.16, 0.13, 0.12, 0.11, 0.105]) == (5, None)
    assert run(stopping, "slow", [0.34, 0.22, 0.13, 0.105, 0.1]) == (5, None)
    assert run(stopping, "slower", [0.25, 0.23, 0.21, 0.19, 0.17])[1] is not None
    assert run(stopping, "close", [0.1501, 0.115, 0.104, 0.0985, 0.097])[1] is None
    assert list(stopping.front) == ["close"]
    assert stopping.curves.keys() == {"close"}


def report(stopping: Stopping, trial_id: str, means: Sequence[float]) -> None:
    """Evaluations of a trial that isn't stopped and runs on."""
    for at, mean in enumerate(means):
        step = 20 * (at + 1)
        assert stopping.report(trial_id, row(step, mean), looks=LOOKS, last_step=200, searched=True, may_lose=False) is None


@pytest.mark.parametrize("state", ["FAIL", "PRUNED"])
def test_a_trial_that_cannot_win_stops_none(state: Literal["FAIL", "PRUNED"]) -> None:
    """Oracle: by hand. While it runs it is ahead of all; once it has ended the front is what it would be without it."""
    stopping = Stopping(HELD_OUT, race=0.05)
    run(stopping, "complete", [0.2, 0.15, 0.13])
    report(stopping, "ahead", [0.1, 0.08])
    assert list(stopping.front) == ["ahead"]
    assert run(stopping, "before", [0.15, 0.13, 0.12, 0.11, 0.105])[1] == Stop("race: behind ahead", complete=False)
    report(stopping, "running", [0.18, 0.14])
    stopping.ended("ahead", state)
    assert list(stopping.front) == ["complete"]
    assert run(stopping, "after", [0.15, 0.13, 0.12, 0.11, 0.105]) == (5, None)
    assert run(stopping, "worse", [0.3, 0.29, 0.28]) == (2, Stop("race: behind after", complete=False))
    stopping.ended("running", "FAIL")
    assert stopping.curves.keys() == stopping.front.keys() == {"after"}


def test_the_best_complete_trial_is_a_rival_again() -> None:
    """Oracle: by hand. A trial that dominated it has failed, so what is behind it is behind the best."""
    stopping = Stopping(HELD_OUT, race=0.05)
    run(stopping, "complete", [0.15, 0.12, 0.11])
    report(stopping, "ahead", [0.1])
    stopping.ended("ahead", "FAIL")
    assert run(stopping, "behind", [0.16, 0.155, 0.12]) == (2, Stop("race: behind complete", complete=False))


def test_the_level_of_the_race_is_shared_among_the_evaluations() -> None:
    """Oracle: Student's t of 2.4 from ten images is beyond the 2.5 % point (2.26), and within the .5 % point (3.25)."""
    apart = [math.sqrt(10 * 0.9) * side for side in (-1, 1) * 5]  # of mean 0, and of standard error 1
    for looks, stops in ((2, True), (10, False)):
        stopping = Stopping(HELD_OUT, race=0.05)
        for trial_id, images in (("best", [10.0] * 10), ("behind", [12.4 + one for one in apart])):
            for step in (20, 40):
                last = replace(row(step, statistics.fmean(images)), image_losses=images)
                stop = stopping.report(trial_id, last, looks=looks, last_step=200, searched=True, may_lose=True)
        assert (stop is not None) == stops


def test_the_forecast_of_a_noisy_metric() -> None:
    """Oracle: by hand. By 4 in an octave, then by 2 in the next: .4 of that in the last one; its error is sqrt(1.4^2 + .4^2 + 1) noises."""
    curve, error = [Point(1, 9.0), Point(2, 5.0), Point(4, 3.0)], 0.2 * math.sqrt(1.4**2 + 0.4**2 + 1)
    for rival, behind in ((2.2 - 1.7 * error, True), (2.2 - 1.6 * error, False), (2.5, False)):
        assert is_behind(curve, Point(1, rival), 8, 0.05, 0.2) == behind
    assert is_behind([Point(1, 3.0), Point(2, 5.0)], Point(1, 3.0 - 1.7 * 0.2 * math.sqrt(2)), 4, 0.05, 0.2)


@pytest.mark.parametrize("noise", [0.01, None], ids=["by noise", "by image"])
def test_what_starts_slowly_goes_on(noise: float | None) -> None:
    """Oracle: by hand. Five times the latest rate until a curve slows down; a first evaluation alone says nothing."""

    def behind_of_one(*values: float) -> bool:
        curve = [Point(2**at, value, [] if noise else [value] * 6) for at, value in enumerate(values)]
        return is_behind(curve, Point(1, 1.0, [] if noise else [1.0] * 6), 2 ** len(values), 0.05, noise)

    assert not behind_of_one(26.0)
    assert not behind_of_one(8.0, 6.6)
    assert behind_of_one(8.0, 7.1)
    assert not behind_of_one(9.0, 8.0, 6.6)
    assert not behind_of_one(8.0, 6.5, 5.0)
    assert behind_of_one(10.0, 8.0, 6.9)
    assert behind_of_one(8.0, 9.0, 8.5, 8.0, 7.6)


def test_only_what_keeps_the_constraints_is_a_rival() -> None:
    """Oracle: by hand. The lower loss of a trial that copies stops none; the first that keeps the bound does."""
    ranking = Ranking({"holdout_loss": "min"}, {"memorisation": ("<=", 0.2)})
    stopping = Stopping(ranking, race=0.05)
    run(stopping, "copies", [0.1, 0.08, 0.07], memorisation=[0.9, 0.9, 0.9])
    assert run(stopping, "keeps", [0.2, 0.15, 0.14], memorisation=[0.1, 0.1, 0.1]) == (3, None)
    assert run(stopping, "worse", [0.3, 0.29, 0.24], memorisation=[0.1, 0.1, 0.1])[0] == 2
    assert run(stopping, "copies too", [0.12, 0.1, 0.09], memorisation=[0.9, 0.9, 0.9]) == (3, None)


def test_a_trial_turns_by_the_evaluations_that_keep_the_constraints() -> None:
    """Oracle: by hand. Before any keeps them nothing has turned; then the best that does is what counts."""
    ranking = Ranking({"holdout_loss": "min"}, {"modes": (">=", 8)})
    means = [0.1, 0.12, 0.13, 0.14, 0.13, 0.12, 0.15, 0.16, 0.17]
    assert run(Stopping(ranking, early=0.05), "a", means, modes=[7] * 9) == (9, None)
    assert run(Stopping(ranking, early=0.05), "a", means, modes=[7, 7, 7, 8, 8, 8, 8, 8, 8])[1] == Stop(
        "turned: its best evaluation was at step 120", complete=True
    )


def test_several_objectives_are_compared_by_the_front() -> None:
    """Oracle: by hand. Behind in one objective alone is no reason, nor is having turned in one."""
    ranking = Ranking({"holdout_loss": "min", "modes": "max"})
    stopping = Stopping(ranking, early=0.05, race=0.05)
    run(stopping, "few modes", [0.1, 0.09, 0.08], modes=[2, 2, 2])
    run(stopping, "many modes", [0.2, 0.19, 0.18], modes=[9, 9, 9])
    assert stopping.front.keys() == {"few modes", "many modes"}
    assert run(stopping, "between", [0.15, 0.16, 0.17, 0.18], modes=[5, 6, 7, 8]) == (4, None)


def test_what_is_not_finite_is_worse_than_what_is() -> None:
    """Oracle: by hand."""
    assert best_of([Point(1, math.nan), Point(2, math.inf)]) is None
    assert not is_behind([Point(1, math.nan), Point(2, math.nan)], Point(2, 0.1), 4, 0.05, 0.01)
    for bad in (math.nan, math.inf):
        images = [0.1] * 4 + [bad]
        assert has_turned([Point(1, 0.1, [0.1] * 5), Point(2, bad, images), Point(3, bad, images)], 0.05, None)
        assert not has_turned([Point(1, bad, images), Point(2, bad, images), Point(3, bad, images)], 0.05, None)


def test_what_a_sweep_records_of_stopped_trials(tmp_path: Path) -> None:
    """Oracle: by the recorded rows. Turned ones are complete at their best, reruns and plain fine-tuning too; what is behind is pruned."""
    document = synthetic.file(train={"steps": 20}, search={"trials": 14, "scheduler": {"race": {}}, "confirm": {"seeds": [1, 2, 3, 4]}})
    sweep = synthetic.open_sweep(Folder(tmp_path), document)
    synthetic.finish(sweep)
    kinds = set()
    for record in sweep.folder.trials():
        rows = sweep.folder.rows(record.id)
        losses = {row.step: row.metrics["holdout_loss"] for row in rows}
        assert record.best_step == min(losses, key=losses.__getitem__)
        rule = (record.stopped or "no").split(":")[0]
        kinds.add((record.kind, rule, record.state))
        if record.kind == "search":
            assert (rows[-1].step == 20) == (record.stopped is None)
        if rule == "turned":
            assert record.stopped == f"turned: its best evaluation was at step {record.best_step}"
            assert rows[-1].step >= (record.best_step or 0) + 4
        if record.number is not None:
            told = sweep.study.study.trials[record.number]
            assert (told.state.name, told.user_attrs.get("stopped")) == (record.state, record.stopped)
            if record.state == "COMPLETE":
                assert told.values == [losses[record.best_step or 0]]
    assert {("search", "turned", "COMPLETE"), ("search", "race", "PRUNED"), ("confirm", "turned", "COMPLETE")} <= kinds
    assert ("control", "turned", "COMPLETE") in kinds
    assert sweep.folder.record("t0001").stopped.startswith("turned")  # type: ignore[union-attr]


def test_early_stopping_can_be_left_out(tmp_path: Path) -> None:
    """Oracle: every trial runs to its last step."""
    sweep = synthetic.open_sweep(Folder(tmp_path), synthetic.file(train={"steps": 20, "early_stopping": False}))
    synthetic.finish(sweep)
    assert {sweep.folder.rows(record.id)[-1].step for record in sweep.folder.trials()} == {20}
    assert {record.stopped for record in sweep.folder.trials()} == {None}


@pytest.mark.parametrize(
    ("every", "said"), [(2, []), (3, ["3 evaluations, so hardly any is stopped; an evaluate.every of at most 2"]), (8, ["1 evaluation,"])]
)
def test_a_race_of_few_evaluations_warns(every: int, said: list[str]) -> None:
    """Oracle: by hand, of 8 steps."""
    document, file = check_document(synthetic.file(evaluate={"every": every}, search={"scheduler": {"race": {}}}))
    found = Stopping.of(document, file).warnings
    assert len(found) == len(said)
    assert all(line.startswith("search.scheduler.race: a trial has ") and part in line for line, part in zip(found, said, strict=True))
