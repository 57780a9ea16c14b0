"""The Optuna study of a sweep: proposes values, and stores how each trial ended."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.trial import FrozenTrial, TrialState

from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.search.distributions import at_quantile, directions, to_optuna
from fewshot_ray.search.frozen_trials import (
    ENTERED,
    SAMPLER,
    SWEEP,
    TOLD,
    TRIAL,
    EarlierTrial,
    Proposal,
    Result,
    ended_trial,
    entered_trial,
    proposal_of,
    repeat_of,
    running_trial,
)
from fewshot_ray.search.sampling import Sampling
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.space import Space
from fewshot_ray.storage import writing

MOST_REPEATS = 10
"""Number of consecutive repeated proposals after which values are drawn at random."""
TO_TRY = "to_try"
"""User attribute of the study: the earlier trials whose values are tried first; written when all others have entered."""


class Study:
    """The study, in a local journal that one driver writes; its trials are kept in memory as well.

    `outside`: origins of trials that aren't in the searched space (plain fine-tuning beside methods); the sampler doesn't see them. The
    sampler is seeded by trial number and sees what the journal has, so a resumed search proposes the same values.
    """

    def __init__(
        self, journal: Path, name: str, search: SearchSpec, tree: Mapping[str, Any], *, seed: int, outside: Collection[str] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal.parent.mkdir(parents=True, exist_ok=True)
        _heal(journal)
        self.journal = journal
        self.space = Space(tree)
        self.search = search
        self.seed = seed
        self.outside = outside
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=name,
            directions=directions(search),
            sampler=optuna.samplers.RandomSampler(seed=seed),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(list(search.objectives))
        self.sampling = Sampling(search, self.space, seed=seed)
        self._proposals: list[Proposal] = []
        self._sampled = 0
        """Number of trials that the sampler has proposed."""
        self.trained = 0
        """Number of trials that are trained: all but the repeats and those of earlier sweeps."""
        self._numbers: dict[str, int] = {}
        """The number of the first trial of the searched space with these values."""
        self._repeats: dict[int, list[int]] = {}
        """The repeats of each trial that hasn't ended."""
        for trial in self.study.get_trials(deepcopy=False):
            self._note(trial)
        for number in list(self._repeats):
            if self._proposals[number].state.is_finished():  # a kill came between
                self._settle_repeats(number)

    def proposals(self) -> Sequence[Proposal]:
        """All trials, by number."""
        return self._proposals

    def _note(self, trial: FrozenTrial) -> Proposal:
        """Keep a trial of the journal in memory, and show it to the sampler."""
        proposal = proposal_of(trial, self.space)
        is_new = trial.number == len(self._proposals)
        if is_new:
            self._proposals.append(proposal)
            self.trained += proposal.is_trained
            self._sampled += proposal.origin == SAMPLER
        else:
            self._proposals[trial.number] = proposal
        if proposal.origin not in self.outside:
            (self.sampling.add if is_new else self.sampling.end)(trial)
            if self.space.is_complete(proposal.values):
                self._numbers.setdefault(self._key(proposal.values), trial.number)
        if proposal.repeats is not None and not proposal.state.is_finished() and is_new:
            self._repeats.setdefault(proposal.repeats, []).append(trial.number)
        return proposal

    def add(self, values: Mapping[str, Any], origin: str, earlier: EarlierTrial | None = None) -> Proposal:
        """Add a trial as running, in one line of the journal, so that after a kill it is there completely or not at all.

        `earlier`: the trial of an earlier sweep that has these values.
        """
        return self._add(running_trial(values, self.space, origin, earlier))

    @property
    def to_try(self) -> list[EarlierTrial] | None:
        """The trials of earlier sweeps whose values are tried first, in this order; None until `begin_with` has ended."""
        told = self.study.user_attrs.get(TO_TRY)
        return None if told is None else [EarlierTrial(one[SWEEP], one[TRIAL], one["values"]) for one in told]

    def begin_with(self, known: Sequence[tuple[EarlierTrial, Result]], to_try: Sequence[EarlierTrial]) -> None:
        """Enter the results of earlier sweeps, and note what to try first. A kill in between leaves what the next call adds to."""
        entered = {proposal.taken_from for proposal in self._proposals}
        for trial, result in known:
            if f"{trial.sweep}/{trial.id}" not in entered:
                self._add(entered_trial(trial, result, self.space, self.search.objectives))
        with writing(self.journal):
            self.study.set_user_attr(TO_TRY, [{**trial.attributes, "values": dict(trial.values)} for trial in to_try])

    def known_elsewhere(self, here: Sequence[Mapping[str, Any]]) -> int:
        """Number of configurations of earlier sweeps' results, but for those among `here`."""
        entered = {self._key(proposal.values) for proposal in self._proposals if proposal.origin == ENTERED}
        return len(entered - {self._key(values) for values in here if self.space.is_complete(values)})

    def _add(self, trial: FrozenTrial) -> Proposal:
        with writing(self.journal):
            self.study.add_trial(trial)
        return self._note(self.study.get_trials(deepcopy=False)[-1])  # as read from the journal: 3 in a float range is 3.0

    def propose(self) -> Proposal:
        """Propose values that no trial of the search has had, and add them as a running trial.

        Where the sampler proposes known values, they are added as a repeat with the known result, and the sampler is asked again; after
        MOST_REPEATS in a row values are drawn at random. There must be untried values (`search_trials`).
        """
        while True:
            known = len(self._proposals)
            in_a_row = next((place for place, one in enumerate(reversed(self._proposals)) if one.repeats is None), known)
            values = self.sampling.ask(known, self._sampled) if in_a_row < MOST_REPEATS else self._drawn()
            number = self._numbers.get(self._key(values))
            if number is None:
                return self.add(values, SAMPLER)
            self.sampling.discard()
            self._add_repeat(number)

    def _drawn(self) -> dict[str, Any]:
        """Untried values, drawn uniformly at random."""
        draw = random.Random(derived_seed(self.seed, "untried", len(self._proposals)))
        while True:
            values = self.space.choose(lambda parameter: at_quantile(parameter.range, draw.random()))
            if self._key(values) not in self._numbers:
                return values

    def _key(self, values: Mapping[str, Any]) -> str:
        """A text that identifies the values: null for what the trial doesn't have."""
        space = self.space
        return json.dumps([to_optuna(one.range, values[one.path]) if space.has(one, values) else None for one in space.parameters])

    def _add_repeat(self, number: int) -> None:
        """Add a trial with the values and, where known, the result of another one, in one line of the journal."""
        self._add(repeat_of(self.study.get_trials(deepcopy=False)[number]))

    def finish(self, number: int, result: Result) -> None:
        """Store how a trial ended: COMPLETE with its objectives, PRUNED with its course and best evaluation, or FAIL with the reason.

        A trial that has ended already is left as it is.
        """
        self._tell(number, ended_trial(result, self.search.objectives))
        self._settle_repeats(number)

    def _settle_repeats(self, number: int) -> None:
        """Store the result of a trial also for its repeats that were added while it was running."""
        original = self.study.get_trials(deepcopy=False)[number]
        for repeat in self._repeats.pop(number, ()):
            self._tell(repeat, original)

    def _tell(self, number: int, told: FrozenTrial) -> None:
        """Store another trial's result as that of trial `number`."""
        frozen = self.study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            return
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        with writing(self.journal):
            for step, value in told.intermediate_values.items():
                if step not in frozen.intermediate_values:
                    trial.report(value, step)
            for name, amount in told.constraints.items():
                if name not in frozen.constraints:
                    trial.set_constraint(name, amount)
            for name, attribute in told.user_attrs.items():
                if name in TOLD and name not in frozen.user_attrs:
                    trial.set_user_attr(name, attribute)
            self.study.tell(number, told.values if told.state is TrialState.COMPLETE else None, state=told.state)
        self._note(self.study.get_trials(deepcopy=False)[number])


def _heal(journal: Path) -> None:
    """Remove an incomplete last line, after which no line could be read, and a lock file, both left by a kill."""
    for left in journal.parent.glob(f"{journal.name}{LOCK_FILE_SUFFIX}*"):
        left.unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with journal.open("r+b") as file:
                file.truncate(len(whole))
