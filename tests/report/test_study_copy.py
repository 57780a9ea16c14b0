"""The copy of a sweep's study for optuna-dashboard, read by Optuna's own functions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from fewshot_ray.errors import UserError
from fewshot_ray.report.study_copy import copy_study
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.storage import Folder
from tests.report.conftest import png
from tests.search.conftest import light
from tests.search.synthetic import file, finish, open_sweep, small

__all__ = ["light"]
pytestmark = pytest.mark.usefixtures("light")


def written(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def searched(place: Path, document: Any) -> Sweep:
    sweep = open_sweep(Folder(place), document)
    finish(sweep)
    for number, record in enumerate(sweep.folder.trials()):
        for row in sweep.folder.rows(record.id):
            sweep.folder.write_grid(record.id, row.step, png(100 * number + row.step))
    return sweep


def opened(out: Path, name: str) -> tuple[list[optuna.trial.FrozenTrial], JournalStorage]:
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage).get_trials(), storage


def test_a_trials_samples_are_its_artifact(tmp_path: Path) -> None:
    """Oracle: Optuna's list of artifacts and its download: the grid of the best step; all else as in the sweep's journal, which stays."""
    sweep = searched(tmp_path / "sweep", small(23, confirm={"plain": "tuned", "seeds": [7]}))
    before, out = written(tmp_path / "sweep"), tmp_path / "out"
    count = copy_study(sweep.folder, sweep.file, out)
    assert written(tmp_path / "sweep") == before
    originals = sweep.study.study.get_trials()
    copies, storage = opened(out, "s")
    assert len(copies) == len(originals) > 5  # repeats among them
    for copy, original in zip(copies, originals, strict=True):
        (meta,) = get_all_artifact_meta(copy, storage=storage)
        number = original.user_attrs.get("repeats", original.number)
        record = sweep.folder.record(f"t{number:04d}")
        assert record is not None
        assert (meta.filename, meta.mimetype) == (f"{record.id} step {record.best_step}.png", "image/png")
        store = FileSystemArtifactStore(out / "artifacts")
        download_artifact(artifact_store=store, file_path=str(tmp_path / "one.png"), artifact_id=meta.artifact_id)
        assert (tmp_path / "one.png").read_bytes() == sweep.folder.grid(record.id, record.best_step or 0)
        os.unlink(tmp_path / "one.png")
        for name in ("number", "state", "values", "params", "distributions", "user_attrs", "intermediate_values", "datetime_complete"):
            assert getattr(copy, name) == getattr(original, name), name
    plain, _ = opened(out, "s: plain fine-tuning")
    assert [trial.value for trial in plain] == [trial.value for trial in sweep.plain.study.study.get_trials()]  # type: ignore[union-attr]
    assert count == len(copies) + len(plain)


def test_a_running_sweep_is_copied_again(tmp_path: Path) -> None:
    """Oracle: what runs has what it has been evaluated at so far; a later copy takes the earlier one's place."""
    sweep = open_sweep(Folder(tmp_path / "sweep"), file())
    assert copy_study(sweep.folder, sweep.file, tmp_path / "out") == 0
    job = sweep.next_job()
    copy_study(sweep.folder, sweep.file, tmp_path / "out")
    (trial,), _ = opened(tmp_path / "out", "s")
    assert trial.state is optuna.trial.TrialState.RUNNING
    assert not isinstance(job, str)
    sweep.abandon()
    copy_study(sweep.folder, sweep.file, tmp_path / "out")
    assert len(opened(tmp_path / "out", "s")[0]) == 1


def test_what_cannot_be_copied(tmp_path: Path) -> None:
    """Oracle: the error names the place; what is there stays."""
    sweep = open_sweep(Folder(tmp_path / "sweep"), file())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine: holds thesis\.txt; a folder that isn't there yet"):
        copy_study(sweep.folder, sweep.file, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    with pytest.raises(UserError, match="no trial has begun yet"):
        copy_study(type(sweep.folder)(Folder(tmp_path / "none")), sweep.file, tmp_path / "out")
