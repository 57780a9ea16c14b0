"""The searches that are compared: what they propose, and how they stop trials."""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial

from bench.search.replay import Search, Table, Trial
from bench.search.spaces import Between
from fewshot_ray.search.distributions import distribution
from fewshot_ray.search.frozen_trials import SAMPLER, Result, running_trial
from fewshot_ray.search.sampling import Tpe
from fewshot_ray.search.stopping import LEVEL, Stopping
from fewshot_ray.search.study import Study
from fewshot_ray.spec.alternatives import Alternatives
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range
from fewshot_ray.spec.sections import RaceSpec, SearchSpec
from fewshot_ray.trial.ranking import Ranking


class Proposer(Protocol):
    """Chooses configurations."""

    def propose(self, taken: set[int]) -> int:
        """A configuration that isn't taken."""
        ...

    def tell(self, trial: Trial, values: list[float]) -> None:
        """A trial ended, with the objective after each of its evaluations; NaN where it failed."""
        ...


class Stopper(Protocol):
    """Stops trials."""

    def stops(self, trial: Trial) -> bool:
        """Whether the trial stops after its latest evaluation; `trial.stopped` is then why."""
        ...


class Never:
    """Stops no trial."""

    def stops(self, trial: Trial) -> bool:
        """See `Stopper`."""
        return False


class AtRandom:
    """Every configuration is as likely as any other."""

    def __init__(self, table: Table, seed: int) -> None:
        self.order = random.Random(seed).sample(range(len(table)), len(table))

    def propose(self, taken: set[int]) -> int:
        """The next of the shuffled ones."""
        return next(number for number in self.order if number not in taken)

    def tell(self, trial: Trial, values: list[float]) -> None:
        """Learns nothing."""


class OnTable(optuna.samplers.TPESampler):
    """TPE that rates the configurations of a table by its acquisition function, instead of candidates that it draws.

    Values that it models by themselves (each alone, or in the groups of a conditional space) have densities of their own, whose product
    rates a configuration. A group that a configuration doesn't use is no factor.
    """

    def rates(self, pool: Mapping[int, Mapping[str, Any]]) -> None:
        """From now on these configurations are rated, given with their parameters."""
        self.pool = pool
        self.worth = dict.fromkeys(pool, 0.0)
        """The logarithms of their acquisition functions."""
        self.has_rated = False

    def best(self) -> int | None:
        """The one that is rated best; None where trials are drawn at random still."""
        return max(self.worth, key=self.worth.__getitem__) if self.has_rated else None

    def _build_parzen_estimator(self, study: Any, search_space: dict[str, BaseDistribution], trials: Any, handle_below: bool) -> Any:
        density = super()._build_parzen_estimator(study, search_space, trials, handle_below)
        self._rated = [number for number, params in self.pool.items() if search_space.keys() <= params.keys()]
        rated = {name: [one.to_internal_repr(self.pool[number][name]) for number in self._rated] for name, one in search_space.items()}
        if self._rated:
            density.sample = lambda *_: {name: np.array(values) for name, values in rated.items()}  # type: ignore[method-assign]
        return density

    def _compute_acquisition_func(self, samples: Any, mpe_below: Any, mpe_above: Any) -> Any:
        found = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        for number, value in zip(self._rated, found, strict=bool(self._rated)):
            self.worth[number] += float(value)
        self.has_rated = True
        return found


class OursOnTable(OnTable, Tpe):
    """This project's TPE, likewise."""


class RaysBridge:
    """Optuna's TPE as `ray.tune.search.optuna.OptunaSearch` uses it: its defaults, each trial told complete with its last value."""

    def __init__(self, table: Table, seed: int, **settings: Any) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.table = table
        self.sampler = OnTable(seed=seed, **settings)
        self.study = optuna.create_study(sampler=self.sampler)
        self.space = optuna_space(table)
        self.first = AtRandom(table, seed)

    def propose(self, taken: set[int]) -> int:
        """The untaken configuration that TPE rates best."""
        self.sampler.rates({number: params for number, params in enumerate(self.table.configurations) if number not in taken})
        self.study.tell(self.study.ask(self.space), state=TrialState.FAIL)  # what is trained is told when it has ended
        best = self.sampler.best()
        return self.first.propose(taken) if best is None else best

    def tell(self, trial: Trial, values: list[float]) -> None:
        """The last value, whether it was stopped or not."""
        params = self.table.configurations[trial.configuration]
        if math.isfinite(values[-1]):
            self.study.add_trial(create_trial(values=[values[-1]], params=params, distributions=self.space))


class BestOfTrial(RaysBridge):
    """Optuna's TPE, told the best value of each trial, as its documentation advises; multivariate."""

    def __init__(self, table: Table, seed: int) -> None:
        super().__init__(table, seed, multivariate=True)

    def tell(self, trial: Trial, values: list[float]) -> None:
        """The best value."""
        super().tell(trial, [min(values)])


class Ours:
    """This project's study and sampler, in the space as a run's file would have it: what only some methods use, only they have."""

    def __init__(
        self, table: Table, objectives: Mapping[str, str], seed: int, trials: int, constraints: Mapping[str, str] | None = None
    ) -> None:
        self.table = table
        self.settings = SearchSpec.model_validate({"trials": trials, "objectives": objectives, "constraints": constraints or {}})
        self.ranking = Ranking.of(self.settings)
        self.scratch = tempfile.TemporaryDirectory()
        self.study = Study(Path(self.scratch.name) / "journal", table.space.name, self.settings, tree(table), seed=seed)
        self.first = AtRandom(table, seed)
        self.values = [self._values(number) for number in range(len(table))]
        self.params = [running_trial(values, self.study.space, SAMPLER).params for values in self.values]
        self.numbers: dict[int, int] = {}
        self.taken: set[int] = set()
        self.proposed = 0
        sampling, ask = self.study.sampling, self.study.sampling.ask

        def on_table(**settings: Any) -> OursOnTable:
            self.sampler = OursOnTable(**settings)
            self.sampler.rates({number: params for number, params in enumerate(self.params) if number not in self.taken})
            return self.sampler

        def rated_best(number: int, earlier: int) -> dict[str, Any]:
            ask(number, earlier)
            sampling.discard()
            best = self.sampler.best()
            self.proposed = self.first.propose(self.taken) if best is None else best
            return self.values[self.proposed]

        sampling.tpe = on_table
        sampling.ask = rated_best  # type: ignore[method-assign]

    def _values(self, number: int) -> dict[str, Any]:
        """The values of a configuration that it uses, by path."""
        values = self.table.configurations[number]
        return self.study.space.choose(lambda parameter: values[parameter.path.rpartition(".")[2]])

    def propose(self, taken: set[int]) -> int:
        """The untaken configuration that the study's sampler rates best."""
        self.taken = taken
        number = self.study.propose().number
        self.numbers[self.proposed] = number
        return self.proposed

    def tell(self, trial: Trial, values: list[float]) -> None:
        """Complete or stopped, with every evaluation."""
        rows = [self.table.row(trial.configuration, at) for at in range(trial.done)]
        index = self.ranking.best_index([row.metrics for row in rows])
        if index is None:
            result = Result(TrialState.FAIL, None, rows, error="not finite", failed_by="values")
        else:
            best = rows[index].metrics
            whole = trial.stopped is None or trial.extra.get("complete", False)
            state = TrialState.COMPLETE if whole else TrialState.PRUNED
            result = Result(state, best, rows, self.ranking.violations(best))
        self.study.finish(self.numbers[trial.configuration], result)


class RaysAsha:
    """`ray.tune.schedulers.ASHAScheduler`, with its own reduction factor and a grace of one evaluation."""

    def __init__(self, table: Table, objective: str, *, reduction_factor: float = 4) -> None:
        from ray.tune.schedulers import ASHAScheduler, TrialScheduler

        self.values, self.every = table.metrics[objective], table.every
        longest = self.values.shape[1] * table.every
        self.scheduler = ASHAScheduler(
            time_attr="step", metric="loss", mode="min", max_t=longest, grace_period=table.every, reduction_factor=reduction_factor
        )
        self.stop = TrialScheduler.STOP
        self.known: dict[int, Any] = {}

    def stops(self, trial: Trial) -> bool:
        """See `Stopper`."""
        if trial.number not in self.known:
            self.known[trial.number] = SimpleNamespace(trial_id=str(trial.number))
            self.scheduler.on_trial_add(None, self.known[trial.number])
        value = self.values[trial.configuration, trial.done - 1]
        result = {"step": trial.done * self.every, "loss": float(value) if math.isfinite(value) else math.inf}
        if trial.done < trial.until and self.scheduler.on_trial_result(None, self.known[trial.number], result) == self.stop:
            trial.stopped = "asha"
        return trial.stopped is not None


class OurStopping:
    """This project's stopping; `early` and `race` are the levels of its tests, None without."""

    def __init__(self, table: Table, ranking: Ranking, *, early: float | None = LEVEL, race: float | None = RaceSpec().level) -> None:
        self.table = table
        self.looks = next(iter(table.metrics.values())).shape[1]
        self.stopping = Stopping(ranking, early=early, race=race)

    def stops(self, trial: Trial) -> bool:
        """See `Stopper`."""
        row, last_step = self.table.row(trial.configuration, trial.done - 1), self.looks * self.table.every
        stop = self.stopping.report(str(trial.number), row, looks=self.looks, last_step=last_step, searched=True, may_lose=True)
        if stop is not None:
            trial.stopped, trial.extra["complete"] = stop.reason, stop.complete
        if stop is not None or trial.done == self.looks:
            self.stopping.ended(str(trial.number), "COMPLETE" if stop is None or stop.complete else "PRUNED")
        return stop is not None


@dataclass
class TrialByTrial(Search):
    """Trials one after another, each to its end or until it is stopped."""

    table: Table
    objective: str
    proposer: Proposer
    stopper: Stopper
    taken: set[int] = field(default_factory=set)

    def next(self) -> Trial | None:
        """See `Search`."""
        if len(self.taken) == len(self.table):
            return None
        configuration = self.proposer.propose(self.taken)
        self.taken.add(configuration)
        return Trial(len(self.taken) - 1, configuration, self.table.metrics[self.objective].shape[1])

    def evaluated(self, trial: Trial) -> bool:
        """See `Search`. A trial ends where its values aren't finite."""
        value = self.table.metrics[self.objective][trial.configuration, trial.done - 1]
        if not math.isfinite(value):
            trial.stopped = "not finite"
            return True
        return self.stopper.stops(trial)

    def ended(self, trial: Trial) -> None:
        """See `Search`."""
        self.proposer.tell(trial, self.table.metrics[self.objective][trial.configuration, : trial.done].tolist())


@dataclass
class OneEvaluation(Search):
    """Every configuration is trained to its first evaluation; the best `keep` of each `batch` of them go on to their ends.

    Egele et al. 2023, "The unreasonable effectiveness of early discarding after one epoch".
    """

    table: Table
    objective: str
    proposer: Proposer
    batch: int
    keep: int
    taken: set[int] = field(default_factory=set)
    waiting: list[Trial] = field(default_factory=list)
    first: list[Trial] = field(default_factory=list)
    running: int = 0

    def next(self) -> Trial | None:
        """See `Search`."""
        self.running += 1
        if self.waiting:
            trial = self.waiting.pop(0)
            trial.until = self.table.metrics[self.objective].shape[1]
            return trial
        if len(self.taken) == len(self.table) or len(self.first) + self.running > self.batch:
            self.running -= 1
            return None
        configuration = self.proposer.propose(self.taken)
        self.taken.add(configuration)
        return Trial(len(self.taken) - 1, configuration, 1)

    def evaluated(self, trial: Trial) -> bool:
        """See `Search`."""
        return not math.isfinite(self.table.metrics[self.objective][trial.configuration, trial.done - 1])

    def ended(self, trial: Trial) -> None:
        """See `Search`."""
        self.running -= 1
        if trial.done > 1:
            return
        self.first.append(trial)
        if len(self.first) == self.batch or (len(self.taken) == len(self.table) and not self.running):
            values = self.table.metrics[self.objective][:, 0]
            self.waiting = sorted(self.first, key=lambda one: values[one.configuration])[: self.keep]
            self.first = []


def tree(table: Table) -> dict[str, Any]:
    """The space as a run's file would have it: below each alternative of the method what it uses."""
    found: dict[str, Any] = dict(ranges(table))
    space = table.space
    if space.used_by:
        labels = found["method"].values
        below = [{name: found[name] for name, methods in space.used_by.items() if label in methods} for label in labels]
        found = {name: one for name, one in found.items() if name not in space.used_by} | {"method": Alternatives(labels, tuple(below))}
    return found


def ranges(table: Table) -> dict[str, Range]:
    """All dimensions of the space."""
    made: dict[str, Range] = {}
    for name, dimension in table.space.dimensions.items():
        if not isinstance(dimension, Between):
            made[name] = Choice(tuple(dict.fromkeys(dimension.values)))
        elif dimension.whole:
            made[name] = IntRange(int(dimension.low), int(dimension.high))
        else:
            made[name] = FloatRange(dimension.low, dimension.high, log=dimension.log)
    return made


def optuna_space(table: Table) -> dict[str, BaseDistribution]:
    """The space as Optuna has it."""
    return {name: distribution(range_) for name, range_ in ranges(table).items()}
