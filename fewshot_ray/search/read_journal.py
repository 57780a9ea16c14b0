"""Reads a sweep's journal without changing it, and refuses one that is damaged or of another spec."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.search.distributions import directions, distribution, values_of
from fewshot_ray.search.frozen_trials import ENTERED, ORIGIN, ORIGINS, PLAIN_ORIGIN, REPEATS, Proposal, proposal_of
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.space import Space
from fewshot_ray.spec.wording import show
from fewshot_ray.trial.compose import plain_values

REPLAY = (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError, optuna.exceptions.OptunaError)
"""Optuna's errors on journal entries with missing fields, fields of another type, or unknown references."""


def read_journal(content: bytes, where: str, name: str, search: SearchSpec, tree: Mapping[str, Any]) -> list[Proposal]:
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
        return _replayed(lines, name, search, Space(tree))
    except REPLAY as error:
        raise UserError(
            f"{where}: is not this sweep's journal ({' '.join(str(error).split()) or type(error).__name__}); {right}"
        ) from error


def _replayed(lines: Sequence[bytes], name: str, search: SearchSpec, space: Space) -> list[Proposal]:
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
        if studies[name].directions != directions(search):
            raise ValueError("its objectives are others")
    optuna.create_study(directions=directions(search)).add_trials(trials)  # checks each in itself
    return [_proposal(trial, space) for trial in trials]


def _proposal(trial: optuna.trial.FrozenTrial, space: Space) -> Proposal:
    """Raises one of REPLAY."""
    origin = trial.user_attrs[ORIGIN]
    if origin not in ORIGINS or trial.state is TrialState.WAITING or (origin == ENTERED and trial.state is TrialState.RUNNING):
        raise ValueError(f"trial {trial.number} is {trial.state.name} and of {show(origin)}")
    values = values_of(trial, space)
    having = {one.path: one for one in space.having(values)}
    if not values.keys() >= (plain_values(having) if origin == PLAIN_ORIGIN else having).keys():
        raise ValueError(f"trial {trial.number} lacks a value")
    for path, value in values.items():
        if path not in having or having[path].name not in trial.params:
            raise ValueError(f"trial {trial.number} has {path}, which is not of its alternative")
        if trial.distributions[having[path].name] != distribution(having[path].range):
            raise ValueError(f"trial {trial.number}'s {path} is of another range")
        if not having[path].range.contains(value):
            raise ValueError(f"trial {trial.number}'s {path}, {show(value)}, is not in its range")
    numbers = [*(trial.values or ()), *trial.intermediate_values.values(), *trial.constraints.values()]
    if not all(type(number) in (int, float) for number in numbers):
        raise ValueError(f"trial {trial.number} has a value that is no number")
    repeats = trial.user_attrs.get(REPEATS)
    if repeats is not None and (type(repeats) is not int or not 0 <= repeats < trial.number):
        raise ValueError(f"trial {trial.number} repeats {show(repeats)}")
    return proposal_of(trial, space)
