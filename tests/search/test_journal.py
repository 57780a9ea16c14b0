"""The local copy of a remote folder's journal, which nothing may leave behind."""

from __future__ import annotations

import gc
import io
import math
import tempfile
from pathlib import Path
from uuid import uuid4

import pytest
from rich.console import Console

from fewshot_ray.cluster.driver import _run_trials
from fewshot_ray.cluster.tune import Watch
from fewshot_ray.errors import UserError
from fewshot_ray.search.journal import JOURNAL, PARTS, Journal, recorded
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


@pytest.mark.parametrize("entries", [1, 2, 3, 7, 64, 100])
def test_what_is_new_is_uploaded_in_parts(entries: int, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the local file after every upload, also for a driver that goes on; n log n bytes and log n parts; one file in the end."""
    folder = Folder(f"memory://{uuid4().hex}")
    uploads: list[int] = []
    write = Folder.write_bytes

    def counted(self: Folder, name: str, content: bytes) -> None:
        uploads.append(len(content))
        write(self, name, content)

    monkeypatch.setattr(Folder, "write_bytes", counted)
    journal = Journal(folder)
    for number in range(entries):
        with journal.path.open("ab") as file:
            file.write(b"%05d\n" % number)
        journal.sync()
        journal.sync()  # nothing is new
        content, starts = recorded(folder)
        assert content == journal.path.read_bytes()
        assert len(starts) <= 2 + math.log2(entries)
        if number == entries // 2:
            journal = Journal(folder)
            assert journal.path.read_bytes() == content
    assert len(uploads) == entries
    assert sum(uploads) <= 6 * entries * (2 + math.log2(entries))
    journal.join()
    assert folder.read_bytes(JOURNAL) == b"".join(b"%05d\n" % number for number in range(entries))
    assert recorded(folder)[1] == [0]
    assert folder.names() == [JOURNAL]


def test_parts_that_were_copied_to_disk_are_joined(tmp_path: Path) -> None:
    """Oracle: the whole journal for who reads it, and one file once a driver has opened it; it is then appended to as it stands."""
    place = tmp_path / "copied"
    (place / PARTS).mkdir(parents=True)
    (place / JOURNAL).write_bytes(b"one\n")
    for start, line in ((4, b"two\n"), (8, b"three\n"), (2, b"covered by a later one\n")):
        (place / PARTS / f"{start:015d}").write_bytes(line)
    assert recorded(Folder(place)) == (b"one\ntwo\nthree\n", [0, 4, 8])
    journal = Journal(Folder(place))
    assert journal.path.read_bytes() == b"one\ntwo\nthree\n"
    assert [path.name for path in place.iterdir()] == [JOURNAL]


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
        _run_trials(opened, 1, Console(file=io.StringIO()), Lease(opened.folder.folder), Watch("none"), None)
    gc.collect()
    assert [path.name for path in temporary.iterdir() if path.name.startswith("fewshot-ray-")] == []
