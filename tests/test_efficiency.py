"""bench/search/efficiency.py: searches replayed on curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.search.efficiency import COMPARED, Outcome, running_time
from bench.search.replay import Table, Trial, replay
from bench.search.searches import AtRandom, Never, OneEvaluation, OurStopping, TrialByTrial
from bench.search.spaces import DIGITS
from fewshot_ray.trial.ranking import Ranking

COUNT, EVALUATIONS, EVERY = 14, 10, 20
LOSS = "holdout_loss"


@pytest.fixture
def table() -> Table:
    """The first configurations of the digits: each falls to its own level, half of them turn; the last one fails."""
    draw = np.random.default_rng(0)
    steps = np.arange(1, EVALUATIONS + 1)
    levels = np.linspace(0.1, 0.2, COUNT)[:, None]
    losses = levels + 0.2 * np.exp(-steps / 2) + np.where(np.arange(COUNT)[:, None] % 2, 0, 0.01 * np.maximum(steps - 5, 0))
    losses[-1, 3:] = math.nan
    images = losses[:, :, None] + draw.uniform(-0.3, 0.3, 10) + draw.normal(0, 0.0005, (COUNT, EVALUATIONS, 10))
    return Table(DIGITS, 0, EVERY, {LOSS: images.mean(axis=2)}, images)


class InOrder(AtRandom):
    """Configurations by their numbers."""

    def __init__(self) -> None:
        self.order = list(range(COUNT))


def test_time_passes_for_all_workers_at_once(table: Table) -> None:
    """Oracle: by hand. Two workers train 0 and 1 in turn, then 2 and 3; the incumbent is the least value so far."""
    done = replay(
        TrialByTrial(table, LOSS, InOrder(), Never()), table, workers=2, enough=lambda trained, *_: trained >= EVERY * 2 * (EVALUATIONS + 1)
    )
    assert done.found[:4].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert done.found[-2:].tolist() == [[2, 0], [3, 0]]
    assert done.steps.tolist() == [EVERY * number for number in range(1, 2 * (EVALUATIONS + 1) + 1)]
    values = table.metrics[LOSS]
    assert done.incumbent(values)[-1] == values[:2].min()


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("workers", [1, 3])
def test_every_search_ends(name: str, workers: int, table: Table) -> None:
    """Oracle: every configuration is trained once at most, the failing one to where it fails, and a good one is found."""
    done = replay(COMPARED[name](table, LOSS, 1), table, workers=workers)
    assert len({tuple(one) for one in done.found.tolist()}) == len(done.found)
    assert sorted(trial.configuration for trial in done.trials) == list(range(COUNT))
    assert done.found[done.found[:, 0] == COUNT - 1][:, 1].max() <= 3
    if name in ("random", "TPE", "ours without stopping"):
        assert len(done.found) == (COUNT - 1) * EVALUATIONS + 4
    else:
        assert len(done.found) < (COUNT - 1) * EVALUATIONS
    assert Outcome(done, table.metrics[LOSS]).regret < 50


def test_one_evaluation_each_then_the_best(table: Table) -> None:
    """Oracle: by hand. Of 0 to 6 the best two after one evaluation go on; then of 7 to 13."""
    done = replay(OneEvaluation(table, LOSS, InOrder(), 7, 2), table, workers=1)
    whole = [trial.configuration for trial in done.trials if trial.done == EVALUATIONS]
    assert whole == [0, 1, 7, 8]
    assert [trial.done for trial in done.trials if trial.configuration in (2, 13)] == [1, 1]


def test_ours_stops_what_has_turned(table: Table) -> None:
    """Oracle: the even configurations turn after five evaluations, no others; none of them loses its best one."""
    done = replay(TrialByTrial(table, LOSS, InOrder(), OurStopping(table, Ranking({LOSS: "min"}), race=None)), table, workers=1)
    stopped: list[Trial] = [trial for trial in done.trials if trial.stopped and trial.stopped.startswith("turned")]
    assert {trial.configuration for trial in stopped} == set(range(0, COUNT - 1, 2))
    assert all(5 < trial.done < EVALUATIONS for trial in stopped)
    assert Outcome(done, table.metrics[LOSS]).wrongly == 0


def test_running_time_counts_what_was_in_vain(table: Table) -> None:
    """Oracle: by hand. 100 steps in vain and 50 to a success are 150 for one success."""
    done = replay(TrialByTrial(table, LOSS, InOrder(), Never()), table, workers=1)
    failed, success = Outcome(done, table.metrics[LOSS]), Outcome(done, table.metrics[LOSS])
    failed.spent, failed.steps = 100, {0.1: None}
    success.steps = {0.1: 50}
    assert running_time([failed, success], 0.1) == 150
