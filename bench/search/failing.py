"""How many of a search's later trials fail, where half of the space does, and what the best trial comes to.

python bench/search/failing.py [--seeds 12] [--trials 60]

Three losses of a learning rate and a step size, in which trials fail

- `beyond`: above the best learning rate, so the best values lie beside failing ones;
- `across`: where the sum of both is large, so neither value alone says it;
- `apart`: far from the best values.

Each search is this project's, with its study and sampler, or Optuna's TPE, to which a failed trial is FAIL (which it ignores) or violates a
constraint. Later trials are those of the second half.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna
from optuna.trial import TrialState

from bench.machine import write_result
from fewshot_ray.search import sampling
from fewshot_ray.search.distributions import distribution
from fewshot_ray.search.frozen_trials import Result
from fewshot_ray.search.study import Study
from fewshot_ray.spec.ranges import FloatRange, Range
from fewshot_ray.spec.sections import SearchSpec

RATE, SIZE = "train.lr", "method.ant.noise_step_size"
RANGES: dict[str, Range] = {RATE: FloatRange(1e-5, 1e-1, log=True), SIZE: FloatRange(0.0, 1.0)}


@dataclass(frozen=True)
class Problem:
    """A loss of the learning rate's and the step size's place in their ranges, each from 0 to 1."""

    loss: Callable[[float, float], float]
    fails: Callable[[float, float], bool]

    def __call__(self, values: dict[str, Any]) -> float | None:
        """The loss; None where the trial fails."""
        rate, size = (math.log10(values[RATE]) + 5) / 4, values[SIZE]
        return None if self.fails(rate, size) else self.loss(rate, size)


PROBLEMS = {
    "beyond": Problem(lambda rate, size: 4 * abs(rate - 0.5) + size / 10, lambda rate, _: rate > 0.5),
    "across": Problem(lambda rate, size: 2 * abs(rate - 0.5) + 2 * abs(size - 0.45), lambda rate, size: rate + size > 1),
    "apart": Problem(lambda rate, size: 4 * abs(rate - 0.15) + abs(size - 0.5), lambda rate, _: rate > 0.5),
}

Losses = Iterator[float | None]


def ours(problem: Problem, seed: int, trials: int, *, sampler: str = "tpe") -> Losses:
    """This project's search."""
    search = SearchSpec.model_validate({"trials": trials, "objectives": {"holdout_loss": "min"}, "sampler": sampler})
    with tempfile.TemporaryDirectory() as scratch:
        study = Study(Path(scratch) / "journal", "failing", search, RANGES, seed=seed)
        for _ in range(trials):
            proposal = study.propose()
            loss = problem(proposal.values)
            failed = Result(TrialState.FAIL, None, error="the loss is nan", failed_by="values")
            study.finish(proposal.number, failed if loss is None else Result(TrialState.COMPLETE, {"holdout_loss": loss}))
            yield loss


def c_tpe(problem: Problem, seed: int, trials: int) -> Losses:
    """This project's TPE with the chance of not failing to the power of 1, as c-TPE has it."""
    with caution(1.0):
        yield from ours(problem, seed, trials)


@contextmanager
def caution(exponent: float) -> Iterator[None]:
    """Another exponent of the chance of not failing."""
    with patch.object(sampling, "CAUTION", exponent):
        yield


def optunas(problem: Problem, seed: int, trials: int, *, constrained: bool) -> Losses:
    """Optuna's multivariate TPE."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True))
    space = {name: distribution(one) for name, one in RANGES.items()}
    for _ in range(trials):
        trial = study.ask(space)
        loss = problem(trial.params)
        if constrained:
            trial.set_constraint("failed", 1.0 if loss is None else -1.0)
        if loss is None and not constrained:
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, loss or 0.0)
        yield loss


SEARCHES: dict[str, Callable[[Problem, int, int], Losses]] = {
    "Optuna's TPE, failed trials are FAIL": partial(optunas, constrained=False),
    "Optuna's TPE, failed trials violate a constraint": partial(optunas, constrained=True),
    "ours, exponent 1": c_tpe,
    "ours": ours,
    "ours, Gaussian process": partial(ours, sampler="gp"),
}
FEWER = {"ours, Gaussian process": 24}
"""Trials of a search that takes long to propose."""


def measured(search: str, problem: Problem, seed: int, trials: int) -> tuple[float, float]:
    """The share of later trials that failed, and the least loss."""
    losses = list(SEARCHES[search](problem, seed, min(trials, FEWER.get(search, trials))))
    later = losses[len(losses) // 2 :]
    return sum(loss is None for loss in later) / len(later), min(loss for loss in losses if loss is not None)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--trials", type=int, default=60)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for search in SEARCHES:
        for name, problem in PROBLEMS.items():
            found = [measured(search, problem, seed, arguments.trials) for seed in range(arguments.seeds)]
            failed, best = zip(*found, strict=True)
            row = {"later_trials_failed_percent": 100 * statistics.fmean(failed), "best_loss_median": statistics.median(best)}
            figures.setdefault(search, {})[name] = row
            print(f"{search}, {name}: {row['later_trials_failed_percent']:.0f} %, best loss {row['best_loss_median']:.3f}", flush=True)
    command = f"python bench/search/failing.py --seeds {arguments.seeds} --trials {arguments.trials}"
    print(f"{write_result('failing', command, figures)} written")


if __name__ == "__main__":
    main()
