"""What a search proposes: Optuna's samplers, and what is added to them.

They see its trials as `search.seen` says.

Where values fail just beyond the best ones, TPE goes on proposing failing ones, as its densities are wide: half of them. So the chance of
not failing is a factor of its acquisition function (as in c-TPE, Watanabe & Hutter 2023).

Where values exist in some trials only (conditional spaces), TPE models the choice and each group of values that occur together by
themselves (Optuna's `group`). For the Gaussian process every trial has all values, and the quasi-random points have a coordinate for each.
Optuna's NSGA-II would draw such values at random, so `check` refuses it.

NSGA-II's parents are the best of all trials that have ended, as in its steady-state form (Durillo et al. 2008), not those of the generation
before: with several trials at a time no worker waits for a generation, and the parents are a function of the study.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.search.distributions import at_quantile, directions, distribution, from_optuna
from fewshot_ray.search.seen import FAILED, seen, seen_by_gp
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.space import Space

MOST_FIRST = 10
"""Trials that end before a model proposes; a third of the trials where that is less."""
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
        """The trials of the study, by number; only where the Gaussian process is asked, which gets a study of its own each time."""
        self._idle = optuna.samplers.RandomSampler(seed=seed)
        self._directions = directions(search)
        self._mirror = optuna.create_study(directions=self._directions, sampler=self._idle)
        """What the other samplers see; it grows with the trials."""
        self._places: dict[int, int] = {}
        """The number in the mirror of each trial that isn't left out of it."""
        self._asked: int | None = None
        self.tpe: Callable[..., Tpe] = Tpe
        """Makes TPE's sampler; one of another class rates given configurations."""

    def add(self, trial: FrozenTrial) -> None:
        """A trial of the study that the sampler is to see, running or ended."""
        self._note(trial)
        if trial.state is TrialState.RUNNING and self._asked is not None:
            self._places[trial.number], self._asked = self._asked, None
        elif self._has_mirror and (shown := seen(trial, len(self._directions))) is not None:
            self._places[trial.number] = len(self._mirror.get_trials(deepcopy=False))
            self._mirror.add_trial(shown)

    def end(self, trial: FrozenTrial) -> None:
        """A running trial has ended."""
        self._note(trial)
        if not self._has_mirror:
            return
        running = self._mirror.get_trials(deepcopy=False)[self._places[trial.number]]
        shown = seen(trial, len(self._directions))
        if shown is None:
            self._mirror.tell(running.number, state=TrialState.FAIL)
            return
        handle = optuna.trial.Trial(self._mirror, running._trial_id)
        for name, amount in shown.constraints.items():
            handle.set_constraint(name, amount)
        self._mirror.tell(handle, shown.values)

    @property
    def _has_mirror(self) -> bool:
        return self.search.sampler not in ("gp", "qmc")

    def _note(self, trial: FrozenTrial) -> None:
        if self.search.sampler == "gp":
            self._trials[trial.number] = trial

    def ask(self, number: int, earlier: int) -> dict[str, Any]:
        """Values for trial `number` of the study by path. The caller adds the trial, or discards the values.

        `earlier`: the number of trials that the sampler has proposed before.
        """
        if self.search.sampler == "qmc":
            return quasi_random(self.space, derived_seed(self.seed, "qmc"), earlier)
        seed = derived_seed(self.seed, "sampler", number) % 2**32
        if self.search.sampler == "gp":
            return self._by_gp(seed, earlier)
        self._mirror.sampler = self._sampler(seed)
        asked = self._mirror.ask()
        values = self._suggested(asked)
        self._mirror.sampler = self._idle
        self._asked = asked.number
        return values

    @property
    def _first(self) -> int:
        return max(1, min(MOST_FIRST, self.search.trials // 3))

    def _by_gp(self, seed: int, earlier: int) -> dict[str, Any]:
        shown = seen_by_gp(self._trials.values(), self.space, self._directions)
        if sum(trial.state is TrialState.COMPLETE for trial in shown) < self._first:
            return quasi_random(self.space, derived_seed(self.seed, "qmc"), earlier)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
        study = optuna.create_study(directions=self._directions, sampler=sampler)
        study.add_trials(shown)
        return self._suggested(study.ask({name: distribution(one.range) for name, one in self.space.by_name.items()}))

    def _suggested(self, asked: optuna.Trial) -> dict[str, Any]:
        """What a trial of Optuna's has for each value that it uses."""
        return self.space.choose(lambda one: from_optuna(one.range, asked._suggest(one.name, distribution(one.range))))

    def discard(self) -> None:
        """What was asked for isn't trained."""
        if self._asked is not None:
            self._mirror.tell(self._asked, state=TrialState.FAIL)
            self._asked = None

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if self.search.sampler == "nsga2":
            return _Nsga2(seed=seed, population_size=max(2, min(MOST_PARENTS, self.search.trials // 4)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            tpe = self.tpe(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=self._first, group=self.space.is_conditional)
        if not self.space.is_conditional:
            ranges = {name: distribution(one.range) for name, one in sorted(self.space.by_name.items())}
            tpe.shared = {name: one for name, one in ranges.items() if not one.single()}
        return tpe


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


class Tpe(optuna.samplers.TPESampler):
    """TPE whose acquisition function has the chance of not failing, to the power of CAUTION, as a factor."""

    shared: dict[str, BaseDistribution] | None = None
    """The space, where all trials have all of it: the base class would look through every trial for what they share."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(study, trial) if self.shared is None else self.shared

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
