"""Where a sweep's own Ray can't be started as it is: said in a line before it is tried, or put right."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from fewshot_ray.cluster.own_ray import MOST_SOCKET_BYTES, TOKEN_VARIABLES, bring_token
from fewshot_ray.cluster.ray_private import longest_socket
from fewshot_ray.cluster.session import ray_session
from fewshot_ray.errors import UserError


def refusal() -> str:
    with pytest.raises(UserError) as said, ray_session(None):
        pass
    assert "\n" not in str(said.value)
    return str(said.value)


def test_a_folder_whose_path_is_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the kernel's 108 bytes, the last of which is 0, filled by a folder of 100."""
    folder = "/tmp/" + 95 * "x"
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", folder)
    over = len(longest_socket(Path(folder) / "ray")) - MOST_SOCKET_BYTES
    assert refusal().startswith(f"Ray's folder {folder}/ray: its path is {over} bytes too long for the sockets in it; RAY_TMPDIR naming")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a file, which root can't write either."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (Path(folder) / "file").touch()
        monkeypatch.setenv("RAY_TMPDIR", f"{folder}/{place}")
        assert refusal().startswith(f"Ray's folder {folder}/{place}/ray: can't be written; RAY_TMPDIR naming a folder that is there")


def test_a_folder_that_refuses_although_its_mode_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be made in /proc, by root neither, and its mode doesn't say so to root."""
    monkeypatch.setenv("RAY_TMPDIR", "/proc/sys")
    assert "/proc/sys/ray" in refusal()


def test_processes_that_take_too_long_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own words (ray/_private/node.py), in an exception of no class of its own; mistakes of other classes are not taken for it."""
    errors = iter([Exception("The current node timed out during startup."), KeyError("mistake")])

    def start(**_: object) -> None:
        raise next(errors)

    monkeypatch.setattr("ray.init", start)
    assert refusal().startswith("Ray can't be started here (The current node timed out during startup.); its folder is ")
    with pytest.raises(KeyError), ray_session(None):
        pass


@pytest.mark.parametrize(("home", "brought"), [("home", False), ("file", True), ("file/below", True)])
def test_the_token_without_a_home_directory(home: str, brought: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TOKEN_VARIABLES:
        monkeypatch.setenv(name, "")  # so that whatever is set here is put back
        monkeypatch.delenv(name)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / home))
    bring_token()
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == 64 * brought


def test_a_token_of_the_users_own_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    for name in TOKEN_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    bring_token()
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
