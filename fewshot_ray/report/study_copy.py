"""Copies a sweep's studies into a folder for optuna-dashboard, each trial with the samples of its best evaluation as an artifact.

The sweep is only read. Optuna takes no attribute for a trial that has ended, so the journal is written anew, trial by trial.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from dataclasses import asdict
from pathlib import Path

import optuna
from optuna.artifacts import ArtifactMeta
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial

from fewshot_ray.errors import UserError
from fewshot_ray.search.frozen_trials import REPEATS
from fewshot_ray.search.journal import JOURNAL, recorded
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.plain_search import plain_study_name
from fewshot_ray.search.sweep_folder import SweepFolder, plain_trial_id, trial_id
from fewshot_ray.spec.sections import FileSpec

ARTIFACTS = "artifacts"
ATTRIBUTE = "artifacts:"
"""What the names of Optuna's system attributes for artifacts begin with."""


def copy_study(sweep: SweepFolder, file: FileSpec, out: Path) -> int:
    """Write `study.journal` and `artifacts/` into `out`, over an earlier copy; returns the number of images.

    Raises UserError where the sweep has no study yet, or `out` holds anything else or can't be written.
    """
    try:
        content, _ = recorded(sweep.folder)
    except FileNotFoundError as error:
        raise UserError(f"{sweep.folder.url}: no trial has begun yet; a sweep whose first trial has is right") from error
    try:
        held = sorted(path.name for path in out.iterdir()) if out.exists() else []
        if others := [name for name in held if name not in (JOURNAL, ARTIFACTS)]:
            raise UserError(f"{out}: holds {others[0]}; a folder that isn't there yet, or an earlier copy, would be right")
        if (out / ARTIFACTS).exists():
            shutil.rmtree(out / ARTIFACTS)
        (out / JOURNAL).unlink(missing_ok=True)
        (out / ARTIFACTS).mkdir(parents=True)
        return _copied(content[: content.rfind(b"\n") + 1], sweep, file, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); a folder that you may write to would be right") from error


def _copied(content: bytes, sweep: SweepFolder, file: FileSpec, out: Path) -> int:
    best = {row.trial.id: row.step for row in leaderboard(sweep, file.search)}
    names = {file.name: trial_id, plain_study_name(file): plain_trial_id}
    images = 0
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="fewshot-ray-journal-") as scratch:
        journal = Path(scratch) / JOURNAL
        journal.write_bytes(content)
        source, target = (JournalStorage(JournalFileBackend(str(place))) for place in (journal, out / JOURNAL))
        for known in source.get_all_studies():
            if known.study_name not in names:
                continue
            study = optuna.create_study(storage=target, study_name=known.study_name, directions=known.directions)
            for name, value in known.system_attrs.items():
                target.set_study_system_attr(study._study_id, name, value)
            for trial in source.get_all_trials(known._study_id):
                own = names[known.study_name](trial.user_attrs.get(REPEATS, trial.number))
                attributes = _artifact(sweep, own, best.get(own), out / ARTIFACTS)
                images += len(attributes)
                study.add_trial(_with(trial, attributes))
    return images


def _artifact(sweep: SweepFolder, trial: str, step: int | None, place: Path) -> dict[str, str]:
    """The attribute of a trial's samples at a step, which are copied; empty where there are none."""
    if step is None or step not in sweep.grid_steps(trial):
        return {}
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{sweep.folder.url}/{trial}/{step}"))
    (place / identity).write_bytes(sweep.grid(trial, step))
    meta = ArtifactMeta(artifact_id=identity, filename=f"{trial} step {step}.png", mimetype="image/png", encoding=None)
    return {f"{ATTRIBUTE}{identity}": json.dumps(asdict(meta))}


def _with(trial: FrozenTrial, attributes: dict[str, str]) -> FrozenTrial:
    trial._system_attrs = {**trial._system_attrs, **attributes}
    return trial
