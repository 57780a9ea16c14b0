"""Folders on disk and in memory behave the same; what can't be reached is one line. Faults that pass: test_storage_faults.py."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder, is_remote


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder."""
    return Folder(tmp_path / "runs") if request.param == "disk" else Folder(f"memory://{uuid4().hex}/runs")


def test_what_is_written_comes_back(folder: Folder) -> None:
    """Oracle: the same bytes and text, below folders that were not there; a second write replaces the first."""
    folder.write_bytes("a/b/c.bin", b"\x00\xff")
    folder.write_text("a/note.txt", "größer")
    folder.write_text("a/note.txt", "kleiner, später")
    assert (folder / "a" / "b").read_bytes("c.bin") == b"\x00\xff"
    assert (folder / "a").read_text("note.txt") == "kleiner, später"
    assert (folder / "a").names() == ["b", "note.txt"]
    assert (folder.exists(), folder.exists("a"), folder.exists("a/b/c.bin"), folder.exists("b")) == (True, True, True, False)


def test_a_child_may_be_called_as_its_folder(folder: Folder) -> None:
    """Oracle: a sweep called `runs` in the folder `runs`."""
    folder.write_text("runs/spec.yaml", "x")
    assert folder.names() == ["runs"]
    assert (folder / "runs").names() == ["spec.yaml"]


def test_what_is_not_there(folder: Folder) -> None:
    """Oracle: no names, nothing to remove, FileNotFoundError when read."""
    assert not folder.exists()
    assert folder.names() == []
    folder.remove()
    folder.remove("nothing")
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")
    with pytest.raises(FileNotFoundError):
        folder.read_text("no/thing")


def test_remove_takes_files_and_whole_folders(folder: Folder) -> None:
    """Oracle: what is left."""
    for name in ("a/1", "a/2", "b/1"):
        folder.write_text(name, name)
    folder.remove("a/1")
    assert (folder / "a").names() == ["2"]
    (folder / "b").remove()
    assert folder.names() == ["a"]


@pytest.mark.parametrize(
    ("url", "remote", "shown"),
    [
        ("s3://bucket/sweeps/", True, "s3://bucket/sweeps"),
        ("memory://x", True, "memory://x"),
        ("file:///tmp/x/", False, "/tmp/x"),
        ("local:///tmp/x", False, "/tmp/x"),
        ("/tmp/x/../y", False, "/tmp/y"),
        ("runs", False, os.path.abspath("runs")),
        ("~/runs", False, os.path.expanduser("~/runs")),
    ],
)
def test_urls(url: str, remote: bool, shown: str) -> None:
    """Oracle: the place each stands for."""
    folder = Folder(url)
    assert (is_remote(url), folder.url, str(folder), folder.local) == (remote, shown, shown, None if remote else Path(shown))
    assert folder.name == shown.rsplit("/", 1)[-1]
    assert (folder / "t1").url == f"{shown}/t1"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the folder's content after the disk filled up."""
    folder = Folder(tmp_path)
    folder.write_text("state", "old")

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=rf"storage {tmp_path}: cannot write state \(No space left on device\)"):
        folder.write_text("state", "new")
    assert folder.names() == ["state"]
    assert folder.read_text("state") == "old"


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    """Oracle: a file opened in the ordinary way; a sweep's folder may be shared."""
    (tmp_path / "ordinary").write_text("x")
    Folder(tmp_path).write_text("state", "x")
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


@pytest.mark.parametrize(
    ("url", "message"),
    [("nosuch://bucket/x", "Protocol not known: nosuch"), ("/proc/nowhere/x", "No such file"), ("/dev/null/x", "Not a directory")],
)
def test_a_place_that_cannot_be_is_one_line(url: str, message: str) -> None:
    """Oracle: what the disk or fsspec says, in a UserError."""
    with pytest.raises(UserError, match=message) as refused:
        Folder(url).write_text("state", "x")
    assert "\n" not in str(refused.value)


TALK_TO_S3 = """
from fewshot_ray.errors import UserError
from fewshot_ray.data.images import read_images
from fewshot_ray.patience import set_patience
from fewshot_ray.storage import Folder
set_patience(0.2)
folder = Folder("s3://bucket/sweeps")
for act in (lambda: folder.write_text("a", "x"), lambda: folder.read_text("a"), lambda: folder.exists("a"), folder.names,
            lambda: folder.remove("a"), lambda: read_images("s3://bucket/images", size=8, channels=1)):
    try:
        act()
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Unable to locate credentials"),
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect"),
    ],
)
def test_s3_out_of_reach_is_one_line(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    """Oracle: botocore's own words, after the first call loads it; a process of its own, so that no other test's client is used."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    alone = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    answer = subprocess.run(
        [sys.executable, "-c", TALK_TO_S3], env={**others, **alone, **settings}, capture_output=True, text=True, timeout=60, check=True
    )
    lines = answer.stdout.splitlines()
    assert len(lines) == 6
    assert all(message in line for line in lines)
    assert all(line.startswith("storage s3://bucket/sweeps: cannot ") for line in lines[:5])
