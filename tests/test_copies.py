"""Remote files are fetched once a machine, whoever asks, and never taken for others of the same place."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fewshot_ray.copies import CACHE_VARIABLE, cache_folder, local_copies
from fewshot_ray.errors import UserError
from fewshot_ray.storage import open_place

URL = "memory://copies"


class Counted:
    """A filesystem that counts what is fetched from it."""

    def __init__(self, filesystem: Any) -> None:
        self.filesystem, self.fetched = filesystem, []

    def get_file(self, remote: str, local: str) -> None:
        self.fetched.append(remote)
        self.filesystem.get_file(remote, local)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def put(name: str, content: bytes) -> None:
    with fsspec.open(f"{URL}/{name}", "wb") as out:
        out.write(content)


def test_fetched_once_by_many() -> None:
    """Oracle: each file is asked for once by eight at a time, and anew when another has taken its place."""
    contents = {f"{number}.bin": bytes([number]) * 100 for number in range(5)}
    for name, content in contents.items():
        put(name, content)
    filesystem, path = open_place(URL)
    counted = Counted(filesystem)

    def ask(_: int) -> Path:
        listing = filesystem.find(path, detail=True)
        return local_copies(URL, counted, listing, {remote: Path(remote).name for remote in listing})

    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(ask, range(8)))
    assert len(folders) == 1
    assert len(counted.fetched) == len(set(counted.fetched)) == 5
    assert {file.name: file.read_bytes() for file in folders.pop().iterdir()} == contents
    put("0.bin", b"x" * 100)
    assert (ask(0) / "0.bin").read_bytes() == b"x" * 100


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out", ""])
def test_a_name_that_leads_elsewhere(name: str) -> None:
    """Oracle: nothing is written."""
    filesystem, _ = open_place(URL)
    with pytest.raises(ValueError, match="is called"):
        local_copies(URL, filesystem, {"k": {}}, {"k": name})


def test_a_folder_that_is_not_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a temporary folder that others may write to is refused in one line, which says what to set."""
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    os.chmod(folder, 0o777)
    with pytest.raises(UserError, match=CACHE_VARIABLE):
        cache_folder()
