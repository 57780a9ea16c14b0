"""What Optuna's sampler sees of a search, and what it proposes.

The study says what happened to each trial; its samplers learn nothing from FAIL, the Gaussian process nothing from PRUNED either. So they
are given a study in memory in which

- a stopped trial is complete at its best evaluation, as a trial's value is its best one;
- a trial that failed by its values (a loss that isn't finite, settings that don't fit the model) is complete and violates a constraint, by
  more than any that was measured;
- a trial whose worker crashed isn't there: that says nothing of its values.

Where values fail just beyond the best ones, TPE goes on proposing failing ones, as its densities are wide: half of them. So the chance of
not failing is a factor of its acquisition function (as in c-TPE, Watanabe & Hutter 2023).

Where values exist in some trials only (conditional spaces), TPE models the choice and each group of values that occur together by
themselves (Optuna's `group`). The quasi-random points have a coordinate for each value of the space, used or not, so they need no such
thing. Optuna's Gaussian process and NSGA-II would draw those values at random, so `check` refuses them.

NSGA-II's parents are the best of all trials that have ended, as in its steady-state form (Durillo et al. 2008), not those of the generation
before: with several trials at a time no worker waits for a generation, and the parents are a function of the study.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.search.distributions import at_quantile, directions, distribution, from_optuna
from fewshot_ray.search.frozen_trials import BEST, FAILED_BY
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.space import Parameter, Space

BY_VALUES = "values"
FAILED = "failed"
"""Name of the constraint that a trial violates which failed by its values."""

NO_MIRROR = ("gp", "qmc")
"""Samplers that don't ask the study in memory that grows with the trials: one is built for each proposal, or none is needed."""
MOST_PARENTS = 50
"""Largest population of NSGA-II; a quarter of the trials where that is less."""

CAUTION = 5.0
"""Exponent of the chance of not failing; 1 is c-TPE's. Chosen so that where half of the space fails, just beyond the best values, fewer
than 15 % of a search's later trials do."""


class Sampling:
    """The sampler of a search, with the trials that it sees.

    It is seeded by the number of trials, and the trials that it sees are a function of the study's, so a resumed search proposes what the
    uninterrupted one would.
    """

    def __init__(self, search: SearchSpec, space: Space, *, seed: int) -> None:
        self.search = search
        self.space = space
        self.seed = seed
        self._trials: dict[int, FrozenTrial] = {}
        self._idle = optuna.samplers.RandomSampler(seed=seed)
        self._directions = directions(search)
        self._mirror = self._empty()
        self._places: dict[int, int] = {}
        """The number in the mirror of each trial that isn't left out of it."""
        self._asked: int | None = None

    def _empty(self) -> optuna.Study:
        return optuna.create_study(directions=self._directions, sampler=self._idle)

    def add(self, trial: FrozenTrial) -> None:
        """A trial of the study that the sampler is to see, running or ended."""
        if self.search.sampler in NO_MIRROR:
            self._trials[trial.number] = trial
            return
        if trial.state is TrialState.RUNNING and self._asked is not None:
            self._places[trial.number], self._asked = self._asked, None
        elif (seen := _seen(trial, _constraints(trial), self._directions)) is not None:
            self._places[trial.number] = len(self._mirror.get_trials(deepcopy=False))
            self._mirror.add_trial(seen)

    def end(self, trial: FrozenTrial) -> None:
        """A running trial has ended."""
        if self.search.sampler in NO_MIRROR:
            self._trials[trial.number] = trial
            return
        running = self._mirror.get_trials(deepcopy=False)[self._places[trial.number]]
        seen = _seen(trial, _constraints(trial), self._directions)
        if seen is None:
            self._mirror.tell(running.number, state=TrialState.FAIL)
            return
        handle = optuna.trial.Trial(self._mirror, running._trial_id)
        for name, amount in seen.constraints.items():
            handle.set_constraint(name, amount)
        self._mirror.tell(handle, seen.values)

    def ask(self, number: int, earlier: int) -> dict[str, Any]:
        """Values for trial `number` of the study by path. The caller adds the trial, or discards the values.

        `earlier`: the number of trials that the sampler has proposed before.
        """
        if self.search.sampler == "qmc":
            return quasi_random(self.space, derived_seed(self.seed, "qmc"), earlier)
        if self.search.sampler == "gp":
            self._mirror = self._empty()
            self._mirror.add_trials(_seen_by_gp(list(self._trials.values()), self._directions))
        self._mirror.sampler = self._sampler(number)
        asked = self._mirror.ask()

        def suggested(parameter: Parameter) -> Any:
            return from_optuna(parameter.range, asked._suggest(parameter.name, distribution(parameter.range)))

        values = self.space.choose(suggested)
        self._mirror.sampler = self._idle
        self._asked = asked.number
        return values

    def discard(self) -> None:
        """What was asked for isn't trained."""
        if self._asked is not None:
            self._mirror.tell(self._asked, state=TrialState.FAIL)
            self._asked = None

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derived_seed(self.seed, "sampler", number) % 2**32
        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        startup = max(1, min(10, self.search.trials // 3))
        if self.search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        if self.search.sampler == "nsga2":
            return _Nsga2(seed=seed, population_size=max(2, min(MOST_PARENTS, self.search.trials // 4)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _Tpe(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup, group=self.space.is_conditional)


def quasi_random(space: Space, seed: int, index: int) -> dict[str, Any]:
    """Values by path at point `index` (from 0) of a scrambled Sobol sequence (Owen 1998) with a coordinate for each parameter."""
    sequence = qmc.Sobol(len(space.by_name), rng=np.random.default_rng(seed))
    if index:
        sequence.fast_forward(index)
    shares = dict(zip(space.by_name, sequence.random(1)[0], strict=True))
    return space.choose(lambda parameter: at_quantile(parameter.range, float(shares[parameter.name])))


class _Nsga2(optuna.samplers.NSGAIISampler):
    """NSGA-II in its steady-state form; the first `population_size` trials are drawn at random."""

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        ended = study._get_trials(deepcopy=False, states=[TrialState.COMPLETE], use_cache=True)
        if len(ended) < int(self.population_size or 0):
            return {}
        parents = self._elite_population_selection_strategy(study, ended)
        return self._child_generation_strategy(study, search_space, parents)


class _Tpe(optuna.samplers.TPESampler):
    """TPE whose acquisition function has the chance of not failing, to the power of CAUTION, as a factor."""

    def _get_params(self, trial: FrozenTrial, study: optuna.Study) -> dict[str, Any]:
        return trial.params  # the base class adds what was drawn for the alternatives that the trial hasn't, which a resumed one lacks

    def _sample(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        ended = study._get_trials(deepcopy=False, states=[TrialState.COMPLETE], use_cache=True)
        ended = [one for one in ended if search_space.keys() <= one.params.keys()]
        failed = [one for one in ended if FAILED in one.constraints]
        others = [one for one in ended if FAILED not in one.constraints]
        self._densities: list[tuple[int, Any]] = []
        if failed and others:
            self._densities = [
                (len(trials), self._build_parzen_estimator(study, search_space, trials, handle_below=False)) for trials in (others, failed)
            ]
        return super()._sample(study, trial, search_space)

    def _compute_acquisition_func(self, samples: dict[str, Any], mpe_below: Any, mpe_above: Any) -> Any:
        value = super()._compute_acquisition_func(samples, mpe_below, mpe_above)
        if not self._densities:
            return value
        others, failed = (math.log(count) + density.log_pdf(samples) for count, density in self._densities)
        return value + CAUTION * (others - np.logaddexp(others, failed))


def _has_failed_by_values(trial: FrozenTrial) -> bool:
    return trial.state is TrialState.FAIL and trial.user_attrs.get(FAILED_BY) == BY_VALUES


def _constraints(trial: FrozenTrial) -> dict[str, float]:
    """What TPE orders infeasible trials by: the sum of what is above 0."""
    return {FAILED: math.inf} if _has_failed_by_values(trial) else dict(trial.constraints)


def _seen(
    trial: FrozenTrial, constraints: Mapping[str, float], objectives: Sequence[StudyDirection], worst: Sequence[float] | None = None
) -> FrozenTrial | None:
    """A trial as the sampler sees it; None where it doesn't. `worst`: the objectives of one without any, by default 0."""
    if trial.state is TrialState.RUNNING:
        return optuna.trial.create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
    if _has_failed_by_values(trial):
        values = list(worst or [0.0] * len(objectives))
    elif trial.state is TrialState.COMPLETE:
        values = list(trial.values)
    elif trial.state is TrialState.PRUNED and trial.user_attrs.get(BEST):
        values = [float(value) for value in trial.user_attrs[BEST]]
    else:
        return None
    return optuna.trial.create_trial(values=values, params=trial.params, distributions=trial.distributions, constraints=dict(constraints))


def _seen_by_gp(trials: Sequence[FrozenTrial], objectives: Sequence[StudyDirection]) -> list[FrozenTrial]:
    """The trials as a Gaussian process can take them: all with the same constraints, and every number finite."""
    ended = [trial for trial in trials if trial.state is not TrialState.RUNNING and _seen(trial, {}, objectives) is not None]
    names = list(dict.fromkeys(name for trial in ended for name in trial.constraints))
    largest = {name: max(_finite(trial.constraints.get(name, math.inf) for trial in ended), default=1.0) for name in names}
    any_failed = any(map(_has_failed_by_values, ended))
    measured = [seen.values for trial in ended if not _has_failed_by_values(trial) and (seen := _seen(trial, {}, objectives)) is not None]
    worst = [
        (max if direction is StudyDirection.MINIMIZE else min)(values)
        for direction, values in zip(objectives, zip(*measured, strict=True), strict=False)
    ]

    def constraints(trial: FrozenTrial) -> dict[str, float]:
        found = {name: min(trial.constraints.get(name, math.inf), largest[name]) for name in names}
        return found | ({FAILED: 1.0 if _has_failed_by_values(trial) else -1.0} if any_failed else {})

    shown = [_seen(trial, constraints(trial), objectives, worst or None) for trial in trials]
    return [one for one in shown if one is not None]


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]
