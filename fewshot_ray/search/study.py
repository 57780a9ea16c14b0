"""The Optuna study of a sweep: proposes values, and stores how each trial ended."""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.trial import FrozenTrial, TrialState

from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.search.distributions import at_quantile, directions, distribution, to_optuna, values_of
from fewshot_ray.search.sampling import BEST, FAILED_BY, Sampling
from fewshot_ray.search.sweep_folder import EvaluationRow, FailedBy
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.space import Space
from fewshot_ray.storage import writing

ORIGIN = "origin"
REPEATS = "repeats"
ERROR = "error"
"""User attribute of a failed trial: why."""
STOPPED = "stopped"
"""User attribute of a trial that ended before its last step: why."""
TOLD = (BEST, FAILED_BY, ERROR, STOPPED)
MOST_REPEATS = 10
"""Number of consecutive repeated proposals after which values are drawn at random."""
SAMPLER = "sampler"
PLAIN_ORIGIN = "plain"
EARLIER = "earlier"
"""Origin of a trial with the values of an earlier sweep's trial."""
ENTERED = "entered"
"""Origin of an earlier sweep's trial that entered the study with its result; it isn't trained and has no folder here."""
ORIGINS = ("preset", PLAIN_ORIGIN, "file", SAMPLER, EARLIER, ENTERED)
SWEEP, TRIAL = "sweep", "trial"
"""User attributes of these two: the earlier sweep's place, and the trial's id there."""
TO_TRY = "to_try"
"""User attribute of the study: the earlier trials whose values are tried first; written when all others have entered."""


@dataclass(frozen=True)
class Proposal:
    """A trial of the study, with its values by dotted path."""

    number: int
    values: dict[str, Any]
    origin: str
    state: TrialState
    repeats: int | None = None
    """The number of an earlier trial with the same values: this one gets its result and isn't trained."""
    taken_from: str | None = None
    """The earlier sweep's place and the trial's id there."""

    @property
    def is_trained(self) -> bool:
        """Whether it is trained in this sweep."""
        return self.repeats is None and self.origin != ENTERED


@dataclass(frozen=True)
class Result:
    """How a trial of the search ended."""

    state: TrialState
    """COMPLETE, PRUNED or FAIL."""
    values: Mapping[str, float] | None = None
    """Every metric of its best evaluation; None without one."""
    rows: Sequence[EvaluationRow] = ()
    excess: Mapping[str, float] | None = None
    """The violation of each constraint by its best evaluation."""
    error: str | None = None
    failed_by: FailedBy | None = None
    """Whether a failed one did by its values or by its worker."""
    stopped: str | None = None
    """Why it ended before its last step."""


@dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier sweep."""

    sweep: str
    """The sweep's place."""
    id: str
    values: Mapping[str, Any]
    """By dotted path."""

    @property
    def attributes(self) -> dict[str, str]:
        """User attributes of its trial here."""
        return {SWEEP: self.sweep, TRIAL: self.id}


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
        values = values_of(trial, self.space)
        attributes = trial.user_attrs
        taken_from = f"{attributes[SWEEP]}/{attributes[TRIAL]}" if SWEEP in attributes else None
        proposal = Proposal(trial.number, values, attributes[ORIGIN], trial.state, attributes.get(REPEATS), taken_from)
        is_new = trial.number == len(self._proposals)
        if is_new:
            self._proposals.append(proposal)
            self.trained += proposal.is_trained
            self._sampled += proposal.origin == SAMPLER
        else:
            self._proposals[trial.number] = proposal
        if proposal.origin not in self.outside:
            (self.sampling.add if is_new else self.sampling.end)(trial)
            if self.space.is_complete(values):
                self._numbers.setdefault(self._key(values), trial.number)
        if proposal.repeats is not None and not proposal.state.is_finished() and is_new:
            self._repeats.setdefault(proposal.repeats, []).append(trial.number)
        return proposal

    def add(self, values: Mapping[str, Any], origin: str, earlier: EarlierTrial | None = None) -> Proposal:
        """Add a trial as running, in one line of the journal, so that after a kill it is there completely or not at all.

        `earlier`: the trial of an earlier sweep that has these values.
        """
        attributes = earlier.attributes if earlier is not None else {}
        return self._add(optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={ORIGIN: origin, **attributes}, **self._at(values)))

    def _at(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A trial's parameters and their distributions, as Optuna has them."""
        having = {path: self.space.at(path, values) for path in values}
        return {
            "params": {having[path].name: to_optuna(having[path].range, value) for path, value in values.items()},
            "distributions": {one.name: distribution(one.range) for one in having.values()},
        }

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
                told = self._told(result)
                last = (
                    [told.intermediate_values[told.last_step]] if told.last_step is not None else None
                )  # what `tell` makes a stopped one's
                self._add(
                    optuna.trial.create_trial(
                        state=told.state,
                        values=last if told.state is TrialState.PRUNED else told.values,
                        intermediate_values=told.intermediate_values,
                        constraints=told.constraints,
                        user_attrs={ORIGIN: ENTERED, **trial.attributes, **told.user_attrs},
                        **self._at(trial.values),
                    )
                )
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
        original = self.study.get_trials(deepcopy=False)[number]
        own = {name: value for name, value in original.user_attrs.items() if name in TOLD}
        self._add(
            optuna.trial.create_trial(
                state=original.state,
                values=original.values,
                params=original.params,
                distributions=original.distributions,
                user_attrs={**own, ORIGIN: SAMPLER, REPEATS: number},
                intermediate_values=original.intermediate_values,
                constraints=original.constraints,
            )
        )

    def finish(self, number: int, result: Result) -> None:
        """Store how a trial ended: COMPLETE with its objectives, PRUNED with its course and best evaluation, or FAIL with the reason.

        A trial that has ended already is left as it is.
        """
        self._tell(number, self._told(result))
        self._settle_repeats(number)

    def _told(self, result: Result) -> FrozenTrial:
        """A result as Optuna stores it, without parameters."""
        objectives = list(self.search.objectives)
        best = [result.values[name] for name in objectives] if result.values is not None and result.state is not TrialState.FAIL else None
        course = {row.step: row.metrics.get(objectives[0], math.nan) for row in result.rows} if len(objectives) == 1 else {}
        attributes = {
            **{ERROR: result.error, FAILED_BY: result.failed_by, STOPPED: result.stopped},
            BEST: best if result.state is TrialState.PRUNED else None,
        }
        return optuna.trial.create_trial(
            state=result.state,
            values=best if result.state is TrialState.COMPLETE else None,
            intermediate_values={step: value for step, value in course.items() if math.isfinite(value)},
            constraints=dict(result.excess or {}),
            user_attrs={name: value for name, value in attributes.items() if value is not None},
        )

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
