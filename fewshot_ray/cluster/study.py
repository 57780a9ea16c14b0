"""The Optuna study of a sweep: what is proposed, and the truth about how each trial ended."""

from __future__ import annotations

import json
import math
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.study import StudyDirection
from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.report.sweep_folder import EvaluationRow
from fewshot_ray.spec.ranges import Choice, IntRange, Range
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.wording import show

ORIGIN = "origin"
SAMPLER = "sampler"
PLAIN_ORIGIN = "plain"
CHOICE_INDEX = "index"
ORIGINS = ("preset", PLAIN_ORIGIN, "file", SAMPLER)
REPLAY = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, optuna.exceptions.OptunaError)
"""What Optuna raises on entries whose fields are missing, of another type or about what isn't there."""


def distribution(range_: Range) -> BaseDistribution:
    """Optuna's counterpart of a range; a choice between values Optuna can't store is one between their positions."""
    if isinstance(range_, Choice):
        plain = all(value is None or isinstance(value, bool | int | float | str) for value in range_.values)
        return CategoricalDistribution(range_.values if plain else [f"{CHOICE_INDEX} {i}" for i in range(len(range_.values))])
    if isinstance(range_, IntRange):
        return IntDistribution(range_.low, range_.high)
    return FloatDistribution(range_.low, range_.high, log=range_.log)


def to_optuna(range_: Range, value: Any) -> Any:
    """A value of the range as its distribution stores it."""
    choices = getattr(distribution(range_), "choices", None)
    if isinstance(range_, Choice) and choices != range_.values:
        return f"{CHOICE_INDEX} {list(range_.values).index(value)}"
    return value


def from_optuna(range_: Range, stored: Any) -> Any:
    """The inverse of `to_optuna`."""
    choices = getattr(distribution(range_), "choices", None)
    if isinstance(range_, Choice) and choices != range_.values:
        return range_.values[int(str(stored).removeprefix(CHOICE_INDEX))]
    return stored


@dataclass(frozen=True)
class Proposal:
    """A trial of the study, with its values by dotted path."""

    number: int
    values: dict[str, Any]
    origin: str
    state: TrialState


def read_journal(content: bytes, where: str, name: str, search: SearchSpec, ranges: Mapping[str, Range]) -> list[Proposal]:
    """The trials in a journal, which is only read; a last line that a kill cut short is passed over.

    Raises UserError, naming `where`, for what is no journal, or that of another spec: going on from it would begin the search anew over
    the trials there are.
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
    # Plain fine-tuning beside methods has none of theirs.
    if not values.keys() >= {path for path in ranges if origin != PLAIN_ORIGIN or not path.startswith("method.")}:
        raise ValueError(f"trial {trial.number} lacks a value")
    for path, value in values.items():
        if trial.distributions[path] != distribution(ranges[path]):
            raise ValueError(f"trial {trial.number}'s {path} is of another range")
        if not ranges[path].contains(value):
            raise ValueError(f"trial {trial.number}'s {path}, {show(value)}, is not in its range")
    numbers = [*(trial.values or ()), *trial.intermediate_values.values(), *trial.constraints.values()]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"trial {trial.number} has a value that is no number")
    return Proposal(trial.number, values, origin, trial.state)


def _directions(search: SearchSpec) -> list[StudyDirection]:
    minimise = {"min": StudyDirection.MINIMIZE, "max": StudyDirection.MAXIMIZE}
    return [minimise[direction] for direction in search.objectives.values()]


class Study:
    """The study in a journal on this machine's disk, which one driver writes.

    `outside` names origins that are on record and not in the searched space (plain fine-tuning beside methods): the sampler
    learns nothing from them.
    The sampler is seeded anew for each trial number, over what the journal holds: a restarted search proposes what it would have.
    """

    def __init__(
        self, journal: Path, name: str, search: SearchSpec, ranges: Mapping[str, Range], *, seed: int, outside: Collection[str] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal.parent.mkdir(parents=True, exist_ok=True)
        _heal(journal)
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

    def proposals(self) -> list[Proposal]:
        """Every trial there is, by number."""
        return [
            Proposal(
                trial.number,
                {path: from_optuna(self.ranges[path], stored) for path, stored in trial.params.items()},
                trial.user_attrs[ORIGIN],
                trial.state,
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def add(self, values: Mapping[str, Any], origin: str) -> Proposal:
        """Enter a trial as running, in one line of the journal: a kill leaves it there whole or not at all."""
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params={path: to_optuna(self.ranges[path], value) for path, value in values.items()},
            distributions={path: distribution(self.ranges[path]) for path in values},
            user_attrs={ORIGIN: origin},
        )
        self.study.add_trial(trial)
        return self.proposals()[-1]  # as it is read when the sweep is resumed: 3 of a float range is 3.0

    def propose(self) -> Proposal:
        """What the sampler proposes next, entered as running."""
        trials = self.study.get_trials(deepcopy=False)
        mirror = optuna.create_study(directions=self.directions, sampler=self._sampler(len(trials)))
        mirror.add_trials([trial for trial in trials if trial.user_attrs[ORIGIN] not in self.outside])
        asked = mirror.ask({path: distribution(range_) for path, range_ in self.ranges.items()})
        return self.add({path: from_optuna(self.ranges[path], asked.params[path]) for path in self.ranges}, SAMPLER)

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
        """Tell how a trial ended: COMPLETE with its objectives, PRUNED with its intermediate values, or FAIL.

        `excess` is how far each constraint is exceeded. A trial that was told before is left as it is.
        """
        frozen = self.study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():
            return
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        objectives = list(self.search.objectives)
        if len(objectives) == 1:
            for row in rows:
                value = row.metrics.get(objectives[0], math.nan)
                if row.step not in frozen.intermediate_values and math.isfinite(value):
                    trial.report(value, row.step)
        for name, amount in excess.items():
            if name not in frozen.constraints:
                trial.set_constraint(name, amount)
        told = [values[name] for name in objectives] if state is TrialState.COMPLETE and values is not None else None
        self.study.tell(number, told, state=state)


def _heal(journal: Path) -> None:
    """A kill in the middle of a write leaves half a line, after which no further one could be read, and a lock nobody will open."""
    for left in journal.parent.glob(f"{journal.name}{LOCK_FILE_SUFFIX}*"):
        left.unlink(missing_ok=True)
    if journal.exists():
        content = journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with journal.open("r+b") as file:
                file.truncate(len(whole))
