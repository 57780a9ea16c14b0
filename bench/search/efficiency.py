"""How many steps searches take to a good configuration, replayed on recorded curves (record.py), with 95 % intervals.

python bench/search/efficiency.py [--tables digits stylegan2] [--replays 50] [--workers 1 8]

Each search runs on the same splits with the same seeds. Steps are those of all its trials until the best value so far is as good as that
of the best share p of all configurations; a search that ends before has spent its steps in vain (expected running time: all steps over the
number of successes). The rules' constants were chosen on split 0, which isn't reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from bench.machine import write_result
from bench.search.record import TABLES
from bench.search.replay import Array, Replay, Search, Table, replay
from bench.search.searches import AtRandom, BestOfTrial, Never, OneEvaluation, Ours, OurStopping, RaysAsha, RaysBridge, TrialByTrial
from bench.search.spaces import SPACES

OBJECTIVES = {"digits": "holdout_loss", "stylegan2": "kid"}
SHARES = (0.01, 0.03, 0.1)
"""Shares of the space that count as good."""
BUDGET = 40
"""Steps of the comparison at an equal budget, in trials of full length."""
DRAWS = 2000

Searches = dict[str, Callable[[Table, str, int], Search]]

COMPARED: Searches = {
    "random": lambda table, metric, seed: TrialByTrial(table, metric, AtRandom(table, seed), Never()),
    "random, Ray's ASHA": lambda table, metric, seed: TrialByTrial(table, metric, AtRandom(table, seed), RaysAsha(table, metric)),
    "TPE": lambda table, metric, seed: TrialByTrial(table, metric, BestOfTrial(table, seed), Never()),
    "TPE, Ray's ASHA": lambda table, metric, seed: TrialByTrial(table, metric, BestOfTrial(table, seed), RaysAsha(table, metric)),
    "Ray's Optuna bridge, ASHA": lambda table, metric, seed: TrialByTrial(table, metric, RaysBridge(table, seed), RaysAsha(table, metric)),
    "one evaluation, best 3 of 30": lambda table, metric, seed: OneEvaluation(table, metric, AtRandom(table, seed), 30, 3),
    "one evaluation, best 1 of 10": lambda table, metric, seed: OneEvaluation(table, metric, AtRandom(table, seed), 10, 1),
    "ours": lambda table, metric, seed: TrialByTrial(table, metric, Ours(table, seed, len(table)), OurStopping(table, metric)),
    "ours at random": lambda table, metric, seed: TrialByTrial(table, metric, AtRandom(table, seed), OurStopping(table, metric)),
}


class Outcome:
    """What one replay came to on its table."""

    def __init__(self, done: Replay, values: Array) -> None:
        best = np.nanmin(values, axis=1)
        self.range = float(np.nanmax(best) - np.nanmin(best))
        incumbent = done.incumbent(values)
        every = int(done.steps[0])
        self.spent = int(done.steps[-1])
        self.steps = {share: _first(done, incumbent, np.sort(best)[max(0, round(share * len(best)) - 1)]) for share in SHARES}
        within = BUDGET * values.shape[1] * every
        self.regret = float((incumbent[done.steps <= within][-1] - np.nanmin(best)) / self.range)
        self.last_regret = float((incumbent[-1] - np.nanmin(best)) / self.range)
        stopped = [trial for trial in done.trials if trial.stopped and trial.stopped != "not finite"]
        self.stopped = len(stopped)
        self.wrongly = sum(bool(np.nanmin(values[trial.configuration]) < incumbent[-1]) for trial in stopped)


def _first(done: Replay, incumbent: Array, target: float) -> int | None:
    reached = np.flatnonzero(incumbent <= target)
    return int(done.steps[reached[0]]) if len(reached) else None


def running_time(outcomes: list[Outcome], share: float) -> float:
    """Expected running time in steps: all that was spent, over the number of replays that succeeded."""
    spent = sum(one.spent if (steps := one.steps[share]) is None else steps for one in outcomes)
    return spent / max(sum(one.steps[share] is not None for one in outcomes), 1e-9)


def interval(measure: Callable[[Any], float], count: int) -> tuple[float, float]:
    """The 95 % bootstrap interval of a measure of replays, given by their numbers."""
    draw = np.random.default_rng(0)
    found = sorted(measure(draw.integers(count, size=count)) for _ in range(DRAWS))
    return found[int(0.025 * DRAWS)], found[int(0.975 * DRAWS)]


def compare(found: dict[str, list[Outcome]]) -> dict[str, dict[str, Any]]:
    """Of each search its figures, and how many times fewer steps than random it takes."""
    rows = {}
    base = found["random"]
    for name, outcomes in found.items():
        row: dict[str, Any] = {
            "regret_at_budget_percent": 100 * float(np.mean([one.regret for one in outcomes])),
            "regret_percent": 100 * float(np.mean([one.last_regret for one in outcomes])),
            "steps": float(np.mean([one.spent for one in outcomes])),
            "stopped": float(np.mean([one.stopped for one in outcomes])),
            "wrongly_stopped_percent": 100 * sum(one.wrongly for one in outcomes) / max(1, sum(one.stopped for one in outcomes)),
        }
        for share in SHARES:

            def ratio(numbers: Any, share: float = share, outcomes: list[Outcome] = outcomes) -> float:
                return running_time([base[at] for at in numbers], share) / running_time([outcomes[at] for at in numbers], share)

            row[f"fewer_steps_at_{share:g}"] = ratio(range(len(outcomes)))
            row[f"fewer_steps_at_{share:g}_interval"] = interval(ratio, len(outcomes))
        rows[name] = row
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=SPACES, default=list(SPACES))
    parser.add_argument("--replays", type=int, default=50)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--splits", type=int, nargs="+", help="all but the first, which the rules' constants were chosen on")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for name in arguments.tables:
        space, metric = SPACES[name], OBJECTIVES[name]
        splits = arguments.splits or range(1, space.splits)
        tables = [Table.read(TABLES / f"{name}.parquet", space, split) for split in splits]
        for workers in arguments.workers:
            found = {
                one: [
                    Outcome(replay(make(table, metric, seed), table, workers=workers, most_steps=10**9), table.metrics[metric])
                    for table in tables
                    for seed in range(arguments.replays)
                ]
                for one, make in COMPARED.items()
            }
            figures[f"{name}, {workers} workers"] = compare(found)
            print(f"{name}, {workers} workers, objective {metric}:")
            for one, row in figures[f"{name}, {workers} workers"].items():
                print(f"  {one}: {row}", flush=True)
    command = f"python bench/search/efficiency.py --replays {arguments.replays}"
    print(f"{write_result('efficiency', command, figures)} written")


if __name__ == "__main__":
    main()
