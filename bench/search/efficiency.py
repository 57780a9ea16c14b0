"""How many steps searches take to a good configuration, replayed on recorded curves (record.py), with 95 % intervals.

python bench/search/efficiency.py [--cases digits:holdout_loss digits:kid stylegan2:kid] [--replays 50] [--workers 1 8] [--processes 2]

Each search runs on the same splits with the same seeds, and proposes recorded configurations only: TPE rates all that aren't trained yet by
its acquisition function, in place of candidates that it draws, and begins with the same ten as random search. No configuration is trained
twice, so random search too takes fewer steps than it would in an endless space. Steps are those of all its trials until the best value so
far is as good as that of the best share p of all configurations; a search that ends before has spent its steps in vain (expected running
time: all steps over the number of successes). What stopping costs is the regret after TRIALS trials less that of the same search without
stopping, in percent of the range between the best and the worst configuration.

The rules' constants were chosen on the splits of DEVELOPMENT, which aren't reported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from bench.machine import write_result
from bench.search.record import TABLES
from bench.search.replay import Array, Replay, Search, Table, Trial, replay
from bench.search.searches import (
    AtRandom,
    BestOfTrial,
    Never,
    OneEvaluation,
    Ours,
    OurStopping,
    Proposer,
    RaysAsha,
    RaysBridge,
    Stopper,
    TrialByTrial,
)
from bench.search.spaces import SPACES
from fewshot_ray.trial.ranking import Ranking

DEVELOPMENT = {"digits": (0, 1), "stylegan2": ()}
CASES = ("digits:holdout_loss", "digits:kid", "stylegan2:kid")
SHARES = (0.01, 0.03, 0.1)
"""Shares of the space that count as good."""
BUDGET = 20
"""Steps of the comparison at an equal budget, in trials of full length."""
TRIALS = 40
"""Trials of the comparison at an equal number of trials."""
DRAWS = 2000

Make = Callable[[Table, str, int], Search]


def trial_by_trial(proposer: Callable[[Table, str, int], Proposer], stopper: Callable[[Table, str], Stopper]) -> Make:
    """A search of these two."""
    return lambda table, metric, seed: TrialByTrial(table, metric, proposer(table, metric, seed), stopper(table, metric))


def _at_random(table: Table, metric: str, seed: int) -> Proposer:
    return AtRandom(table, seed)


def _tpe(table: Table, metric: str, seed: int) -> Proposer:
    return BestOfTrial(table, seed)


def _bridge(table: Table, metric: str, seed: int) -> Proposer:
    return RaysBridge(table, seed)


def _ours(table: Table, metric: str, seed: int) -> Proposer:
    return Ours(table, {metric: "min"}, seed, len(table))


def _never(table: Table, metric: str) -> Stopper:
    return Never()


def _our_stopping(table: Table, metric: str) -> Stopper:
    return OurStopping(table, Ranking({metric: "min"}))


OURS = "ours"
COMPARED: dict[str, Make] = {
    "random": trial_by_trial(_at_random, _never),
    "random, Ray's ASHA": trial_by_trial(_at_random, RaysAsha),
    "TPE": trial_by_trial(_tpe, _never),
    "TPE, Ray's ASHA": trial_by_trial(_tpe, RaysAsha),
    "Ray's Optuna bridge, ASHA": trial_by_trial(_bridge, RaysAsha),
    "one evaluation, best 3 of 30": lambda table, metric, seed: OneEvaluation(table, metric, AtRandom(table, seed), 30, 3),
    "one evaluation, best 1 of 10": lambda table, metric, seed: OneEvaluation(table, metric, AtRandom(table, seed), 10, 1),
    OURS: trial_by_trial(_ours, _our_stopping),
    "ours without stopping": trial_by_trial(_ours, _never),
    "random, our stopping": trial_by_trial(_at_random, _our_stopping),
}
UNSTOPPED = {
    "random, Ray's ASHA": "random",
    "TPE, Ray's ASHA": "TPE",
    OURS: "ours without stopping",
    "random, our stopping": "random",
}
"""The same searches without stopping."""
OTHERS = [name for name in COMPARED if "our" not in name]


class Outcome:
    """What one replay came to on its table."""

    def __init__(self, done: Replay, values: Array) -> None:
        best = np.nanmin(values, axis=1)
        incumbent = done.incumbent(values)
        every = int(done.steps[0])
        self.spent = int(done.steps[-1])
        self.steps = {share: _first(done, incumbent, good(values, share)) for share in SHARES}
        within = BUDGET * values.shape[1] * every
        self.regret = _regret(incumbent[done.steps <= within][-1], best)
        first = [trial.configuration for trial in done.trials[:TRIALS]]
        among = np.isin(done.found[:, 0], first)
        self.regret_of_first = _regret(np.nanmin(values[done.found[among, 0], done.found[among, 1]]), best)
        stopped = [trial for trial in done.trials if trial.stopped and trial.stopped != "not finite"]
        self.stopped = len(stopped)
        self.wrongly = sum(bool(np.nanmin(values[trial.configuration]) < incumbent[-1]) for trial in stopped)
        self.trials = len(done.trials)


def good(values: Array, share: float) -> float:
    """The best value of the worst of the best share of all configurations; of one at least."""
    best = np.sort(np.nanmin(values, axis=1))
    return float(best[max(1, round(share * len(best))) - 1])


def _regret(value: float, best: Array) -> float:
    """In percent of the range between the best and the worst configuration."""
    return 100 * float(value - np.nanmin(best)) / float(np.nanmax(best) - np.nanmin(best))


def _first(done: Replay, incumbent: Array, target: float) -> int | None:
    reached = np.flatnonzero(incumbent <= target)
    return int(done.steps[reached[0]]) if len(reached) else None


class Enough:
    """A replay has done enough where it has found the best share, spent the budget, and tried TRIALS trials and another one."""

    def __init__(self, table: Table, metric: str) -> None:
        self.values = table.metrics[metric]
        self.target = good(self.values, min(SHARES))
        self.least_steps = BUDGET * self.values.shape[1] * table.every
        self.found = False

    def __call__(self, trained: int, trial: Trial, trials: int) -> bool:
        """See `replay.Enough`."""
        self.found = self.found or bool(self.values[trial.configuration, trial.done - 1] <= self.target)
        return self.found and trained >= self.least_steps and trials > TRIALS


@lru_cache
def read(name: str, split: int) -> Table:
    """The table of a space on a split."""
    return Table.read(TABLES / f"{name}.parquet", SPACES[name], split)


def outcome(case: str, search: str, split: int, seed: int, workers: int) -> Outcome:
    """One replay."""
    name, metric = case.split(":")
    table = read(name, split)
    return Outcome(
        replay(COMPARED[search](table, metric, seed), table, workers=workers, enough=Enough(table, metric)), table.metrics[metric]
    )


def running_time(outcomes: Sequence[Outcome], share: float) -> float:
    """Expected running time in steps: all that was spent, over the number of replays that succeeded."""
    spent = sum(one.spent if (steps := one.steps[share]) is None else steps for one in outcomes)
    return spent / max(sum(one.steps[share] is not None for one in outcomes), 1e-9)


def with_interval(measure: Callable[[Any], float], count: int) -> list[float]:
    """A measure of replays, given by their numbers, and its 95 % bootstrap interval."""
    draw = np.random.default_rng(0)
    found = sorted(measure(draw.integers(count, size=count)) for _ in range(DRAWS))
    return [measure(range(count)), found[int(0.025 * DRAWS)], found[int(0.975 * DRAWS)]]


def fewer_steps(outcomes: Sequence[Outcome], base: Sequence[Outcome], share: float) -> list[float]:
    """How many times fewer steps than another search's, with the interval over replays paired by their seeds."""

    def ratio(numbers: Any) -> float:
        return running_time([base[at] for at in numbers], share) / running_time([outcomes[at] for at in numbers], share)

    return with_interval(ratio, len(outcomes))


def mean(values: Sequence[float]) -> list[float]:
    """The mean of a value of each replay."""
    return with_interval(lambda numbers: float(np.mean([values[at] for at in numbers])), len(values))


def compare(found: dict[str, list[Outcome]]) -> dict[str, dict[str, Any]]:
    """Of each search its figures; of this project's also how many times fewer steps it takes than the best of the others."""
    rows: dict[str, dict[str, Any]] = {}
    for name, outcomes in found.items():
        row: dict[str, Any] = {
            "regret_at_budget_percent": mean([one.regret for one in outcomes]),
            "stopped_percent": 100 * sum(one.stopped for one in outcomes) / sum(one.trials for one in outcomes),
            "wrongly_stopped_percent": 100 * sum(one.wrongly for one in outcomes) / max(1, sum(one.stopped for one in outcomes)),
            "success_percent": {str(share): 100 * float(np.mean([one.steps[share] is not None for one in outcomes])) for share in SHARES},
            "fewer_steps_than_random": {str(share): fewer_steps(outcomes, found["random"], share) for share in SHARES},
        }
        if name in UNSTOPPED:
            pairs = zip(outcomes, found[UNSTOPPED[name]], strict=True)
            row["regret_of_stopping_percent"] = mean([one.regret_of_first - other.regret_of_first for one, other in pairs])
        rows[name] = row
    for share in SHARES:
        times = {name: running_time(found[name], share) for name in OTHERS}
        best = min(times, key=times.__getitem__)
        rows[OURS].setdefault("fewer_steps_than_the_best_other", {})[str(share)] = {best: fewer_steps(found[OURS], found[best], share)}
    return rows


def _shown(row: dict[str, Any]) -> str:
    def number(value: Any) -> str:
        return f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})" if isinstance(value, list) else f"{value:.1f}"

    parts = []
    for name, value in row.items():
        if isinstance(value, dict):
            texts = []
            for key, one in value.items():
                inner = "; ".join(f"{other}: {number(ratio)}" for other, ratio in one.items()) if isinstance(one, dict) else number(one)
                texts.append(f"{key}: {inner}")
            parts.append(f"    {name}: {', '.join(texts)}")
        else:
            parts.append(f"    {name}: {number(value)}")
    return "\n".join(parts)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--replays", type=int, default=50, help="seeds on each split")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--splits", type=int, nargs="+", help="all but those of DEVELOPMENT, if not given")
    arguments = parser.parse_args()
    for case in arguments.cases:
        read(case.split(":")[0], 0)  # a table that is missing is said before hours of replays
    figures: dict[str, Any] = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for case in arguments.cases:
            name = case.split(":")[0]
            splits = arguments.splits or [split for split in range(SPACES[name].splits) if split not in DEVELOPMENT[name]]
            for workers in arguments.workers:
                seeds = range(arguments.replays)
                jobs = [(case, search, split, seed, workers) for search in COMPARED for split in splits for seed in seeds]
                outcomes = list(pool.map(outcome, *zip(*jobs, strict=True), chunksize=5))
                found = {search: [one for job, one in zip(jobs, outcomes, strict=True) if job[1] == search] for search in COMPARED}
                heading = f"{case}, {workers} worker{'s' if workers > 1 else ''}"
                figures[heading] = compare(found)
                print(heading)
                for search, row in figures[heading].items():
                    print(f"  {search}\n{_shown(row)}", flush=True)
    options = "".join(f" --{name} {' '.join(map(str, given))}" for name in ("cases", "splits") if (given := getattr(arguments, name)))
    command = f"python bench/search/efficiency.py{options} --replays {arguments.replays}"
    print(f"{write_result('efficiency', command, figures)} written")


if __name__ == "__main__":
    main()
