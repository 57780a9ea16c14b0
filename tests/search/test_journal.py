"""The local copy of a remote folder's journal, which nothing may leave behind."""

from __future__ import annotations

import gc
import io
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from rich.console import Console

from fewshot_ray.cluster.driver import _run_trials
from fewshot_ray.cluster.tune import Watch
from fewshot_ray.errors import UserError
from fewshot_ray.search.journal import JOURNAL, Journal
from fewshot_ray.search.lease import Lease
from fewshot_ray.search.opened import planned_sweep, put_on_record
from fewshot_ray.storage import Folder
from tests.cluster.conftest import sweep_file


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_copy_goes_with_its_journal(temporary: Path) -> None:
    """Oracle: the earlier content while it is in use, and no file afterwards, whether it was closed or only forgotten."""
    folder = Folder(f"memory://{uuid4().hex}")
    folder.write_bytes(JOURNAL, b"one\n")
    for closed in (True, False):
        journal = Journal(folder)
        assert journal.path.read_bytes() == b"one\n"
        if closed:
            journal.close()
        del journal
        gc.collect()
        assert list(temporary.iterdir()) == [], closed


def test_a_journal_that_can_not_be_read_leaves_nothing(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the place's error, and no file."""
    folder = Folder(f"memory://{uuid4().hex}")
    folder.write_bytes(JOURNAL, b"one\n")

    def unreadable(folder: Folder, name: str) -> bytes:
        raise UserError("away")

    monkeypatch.setattr(Folder, "read_bytes", unreadable)
    with pytest.raises(UserError, match="away"):
        Journal(folder)
    assert list(temporary.iterdir()) == []


def test_a_sweep_that_can_not_be_taken_up_leaves_nothing(temporary: Path) -> None:
    """Oracle: a damaged record ends it before its first trial; neither the journal's copy nor Tune's folder stays."""
    opened = put_on_record(planned_sweep(sweep_file("s", f"memory://{uuid4().hex}")))
    (opened.folder.folder / "trials" / "t0000").write_text("trial.json", "{")
    with pytest.raises(UserError, match="not a trial's record"):
        _run_trials(opened, 1, Console(file=io.StringIO()), Lease(opened.folder.folder), Watch("none"), grows=False)
    gc.collect()
    assert [path.name for path in temporary.iterdir() if path.name.startswith("fewshot-ray-")] == []
