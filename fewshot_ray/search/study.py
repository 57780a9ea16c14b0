"""The Optuna study of a sweep: proposes values, and stores how each trial ended."""

from __future__ import annotations

import json
import math
import random
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.study import StudyDirection
from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.search.distributions import distribution, drawn_from, from_optuna, to_optuna
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.spec.ranges import Range
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.wording import show
from fewshot_ray.storage import writing
from fewshot_ray.trial.compose import plain_values

ORIGIN = "origin"
REPEATS = "repeats"
MOST_REPEATS = 10
"""Number of consecutive repeated proposals after which values are drawn at random."""
SAMPLER = "sampler"
PLAIN_ORIGIN = "plain"
ORIGINS = ("preset", PLAIN_ORIGIN, "file", SAMPLER)
REPLAY = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, optuna.exceptions.OptunaError)
"""Optuna's errors on journal entries with missing fields, fields of another type, or unknown references."""


@dataclass(frozen=True)
class Proposal:
    """A trial of the study, with its values by dotted path."""

    number: int
    values: dict[str, Any]
    origin: str
    state: TrialState
    repeats: int | None = None
    """The number of an earlier trial with the same values: this one gets its result and isn't trained."""


def read_journal(content: bytes, where: str, name: str, search: SearchSpec, ranges: Mapping[str, Range]) -> list[Proposal]:
    """The trials in a journal, which isn't changed; an incomplete last line is ignored.

    Raises UserError, naming `where`, where it isn't a journal, or is one of another spec: the search would start anew over existing trials.
    """
    right = "the file as the sweep left it (a backup's, say) is right"
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not isinstance(json.loads(line), dict):
                raise ValueError("no object")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}, line {number}: not an entry of a journal ({error}); {right}") from error
    if not lines:
        return []
    try:
        return _replayed(lines, name, search, ranges)
    except REPLAY as error:
        raise UserError(
            f"{where}: is not this sweep's journal ({' '.join(str(error).split()) or type(error).__name__}); {right}"
        ) from error


def _replayed(lines: Sequence[bytes], name: str, search: SearchSpec, ranges: Mapping[str, Range]) -> list[Proposal]:
    """Raises one of REPLAY."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fewshot-ray-journal-") as scratch:
        journal = Path(scratch) / "journal"
        journal.write_bytes(b"".join(lines))
        storage = JournalStorage(JournalFileBackend(str(journal)))
        studies = {study.study_name: study for study in storage.get_all_studies()}
        if name not in studies:
            raise ValueError(f"it has no study {show(name)}, the name in spec.yaml")
        trials = storage.get_all_trials(studies[name]._study_id)
        if studies[name].directions != _directions(search):
            raise ValueError("its objectives are others")
    optuna.create_study(directions=_directions(search)).add_trials(trials)  # checks each in itself
    return [_proposal(trial, search, ranges) for trial in trials]


def _proposal(trial: optuna.trial.FrozenTrial, search: SearchSpec, ranges: Mapping[str, Range]) -> Proposal:
    """Raises one of REPLAY."""
    origin = trial.user_attrs[ORIGIN]
    if origin not in ORIGINS or trial.state is TrialState.WAITING:
        raise ValueError(f"trial {trial.number} is {trial.state.name} and of {show(origin)}")
    values = {path: from_optuna(ranges[path], stored) for path, stored in trial.params.items()}
    if not values.keys() >= (plain_values(ranges) if origin == PLAIN_ORIGIN else ranges).keys():
        raise ValueError(f"trial {trial.number} lacks a value")
    for path, value in values.items():
        if trial.distributions[path] != distribution(ranges[path]):
            raise ValueError(f"trial {trial.number}'s {path} is of another range")
        if not ranges[path].contains(value):
            raise ValueError(f"trial {trial.number}'s {path}, {show(value)}, is not in its range")
    numbers = [*(trial.values or ()), *trial.intermediate_values.values(), *trial.constraints.values()]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"trial {trial.number} has a value that is no number")
    repeats = trial.user_attrs.get(REPEATS)
    if repeats is not None and (type(repeats) is not int or not 0 <= repeats < trial.number):
        raise ValueError(f"trial {trial.number} repeats {show(repeats)}")
    return Proposal(trial.number, values, origin, trial.state, repeats)


def _directions(search: SearchSpec) -> list[StudyDirection]:
    minimise = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    return [minimise[direction] for direction in search.objectives.values()]


class Study:
    """The study, in a local journal that one driver writes.

    `outside`: origins of trials that aren't in the searched space (plain fine-tuning beside methods); the sampler doesn't see them. The
    sampler is seeded by trial number and sees what the journal has, so a resumed search proposes the same values.
    """

    def __init__(
        self, journal: Path, name: str, search: SearchSpec, ranges: Mapping[str, Range], *, seed: int, outside: Collection[str] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal.parent.mkdir(parents=True, exist_ok=True)
        _heal(journal)
        self.journal = journal
        self.ranges = ranges
        self.search = search
        self.seed = seed
        self.outside = outside
        self.directions = _directions(search)
        self.study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=name,
            directions=self.directions,
            sampler=optuna.samplers.RandomSampler(seed=seed),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(list(search.objectives))
        self._settle_repeats()

    def proposals(self) -> list[Proposal]:
        """All trials, by number."""
        return [
            Proposal(
                trial.number,
                {path: from_optuna(self.ranges[path], stored) for path, stored in trial.params.items()},
                trial.user_attrs[ORIGIN],
                trial.state,
                trial.user_attrs.get(REPEATS),
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def add(self, values: Mapping[str, Any], origin: str) -> Proposal:
        """Add a trial as running, in one line of the journal, so that after a kill it is there completely or not at all."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={path: to_optuna(self.ranges[path], value) for path, value in values.items()},
            distributions={path: distribution(self.ranges[path]) for path in values},
            user_attrs={ORIGIN: origin},
        )
        with writing(self.journal):
            self.study.add_trial(trial)
        return self.proposals()[-1]  # as read from the journal: 3 in a float range is 3.0

    def propose(self) -> Proposal:
        """Propose values that no trial of the search has had, and add them as a running trial.

        Where the sampler proposes known values, they are added as a repeat with the known result, and the sampler is asked again; after
        MOST_REPEATS in a row values are drawn at random. There must be untried values (`search_trials`).
        """
        while True:
            proposals = self.proposals()
            searched = [one for one in reversed(proposals) if one.origin not in self.outside and one.values.keys() == self.ranges.keys()]
            on_record = {self._key(one.values): one.number for one in searched}
            in_a_row = next((place for place, one in enumerate(reversed(proposals)) if one.repeats is None), len(proposals))
            values = self._asked() if in_a_row < MOST_REPEATS else self._drawn(on_record, len(proposals))
            number = on_record.get(self._key(values))
            if number is None:
                return self.add(values, SAMPLER)
            self._add_repeat(number)

    def _asked(self) -> dict[str, Any]:
        trials = self.study.get_trials(deepcopy=False)
        mirror = optuna.create_study(directions=self.directions, sampler=self._sampler(len(trials)))
        mirror.add_trials([trial for trial in trials if trial.user_attrs[ORIGIN] not in self.outside])
        asked = mirror.ask({path: distribution(range_) for path, range_ in self.ranges.items()})
        return {path: from_optuna(range_, asked.params[path]) for path, range_ in self.ranges.items()}

    def _drawn(self, on_record: Collection[str], number: int) -> dict[str, Any]:
        """Untried values, drawn uniformly at random."""
        draw = random.Random(derived_seed(self.seed, "untried", number))
        while True:
            values = {path: drawn_from(range_, draw) for path, range_ in self.ranges.items()}
            if self._key(values) not in on_record:
                return values

    def _key(self, values: Mapping[str, Any]) -> str:
        """A text that identifies the values."""
        return json.dumps([to_optuna(range_, values[path]) for path, range_ in self.ranges.items()])

    def _add_repeat(self, number: int) -> None:
        """Add a trial with the values and, where known, the result of another one, in one line of the journal."""
        original = self.study.get_trials(deepcopy=False)[number]
        repeat = optuna.trial.create_trial(
            state=original.state,
            values=original.values,
            params=original.params,
            distributions=original.distributions,
            user_attrs={ORIGIN: SAMPLER, REPEATS: number},
            intermediate_values=original.intermediate_values,
            constraints=original.constraints,
        )
        with writing(self.journal):
            self.study.add_trial(repeat)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = derived_seed(self.seed, "sampler", number) % 2**32
        if self.search.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        startup = max(1, min(10, self.search.trials // 3))
        if self.search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=startup)

    def finish(
        self, number: int, state: TrialState, values: Mapping[str, float] | None, rows: Sequence[EvaluationRow], excess: Mapping[str, float]
    ) -> None:
        """Store how a trial ended: COMPLETE with its objectives, PRUNED with its intermediate values, or FAIL.

        `excess`: violation of each constraint. A trial that has ended already is left as it is.
        """
        objectives = list(self.search.objectives)
        told = [values[name] for name in objectives] if state is TrialState.COMPLETE and values is not None else None
        course = {row.step: row.metrics.get(objectives[0], math.nan) for row in rows} if len(objectives) == 1 else {}
        self._tell(number, state, told, {step: value for step, value in course.items() if math.isfinite(value)}, excess)
        self._settle_repeats()

    def _settle_repeats(self) -> None:
        """Store the results of repeats that were added while the repeated trial was running."""
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            original = trials[trial.user_attrs.get(REPEATS, trial.number)]
            if original.state.is_finished() and not trial.state.is_finished():
                values = original.values if original.state is TrialState.COMPLETE else None
                self._tell(trial.number, original.state, values, original.intermediate_values, original.constraints)

    def _tell(
        self, number: int, state: TrialState, values: Sequence[float] | None, course: Mapping[int, float], excess: Mapping[str, float]
    ) -> None:
        frozen = self.study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            return
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        with writing(self.journal):
            for step, value in course.items():
                if step not in frozen.intermediate_values:
                    trial.report(value, step)
            for name, amount in excess.items():
                if name not in frozen.constraints:
                    trial.set_constraint(name, amount)
            self.study.tell(number, values, state=state)


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
