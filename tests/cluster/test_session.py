"""The Ray that a sweep without a cluster runs on."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from fewshot_ray.cli import check
from fewshot_ray.cli.check import check_file
from fewshot_ray.errors import UserError
from tests.cluster.conftest import listening, sweep_file

pytestmark = pytest.mark.ray


def test_nothing_listens_to_the_network(local_ray: None) -> None:
    """Oracle: the system's own list of what this process and those that it started listen on."""
    import ray

    @ray.remote
    def work() -> int:
        return 1

    assert ray.get(work.remote()) == 1
    heard = listening()
    assert {"raylet", "gcs_server"} <= {name for name, _ in heard}
    assert len(heard) > 5
    assert [name for name, address in heard if not address.is_loopback] == []


def test_without_a_home_directory(short_folder: Path) -> None:
    """Oracle: a task of a Ray of its own, in a process without one."""
    program = (
        "import os, ray\nfrom fewshot_ray.cluster.session import ray_session\n"
        "@ray.remote\ndef mode(): return os.environ['RAY_AUTH_MODE']\n"
        "with ray_session(None): print(ray.get(mode.remote()))"
    )
    (short_folder / "file").touch()
    settings = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    settings |= {"HOME": str(short_folder / "file" / "home"), "RAY_TMPDIR": str(short_folder)}
    done = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "token\n"), done.stderr


def test_check_asks_the_ray_that_a_run_would_join(local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the two CPUs of that Ray, where this machine may have more."""
    said = io.StringIO()
    fits, asks_too_much = (sweep_file("tiny", tmp_path, resources={"workers": workers}) for workers in (2, 3))
    check_file(fits, "auto", Console(file=said, width=200))
    assert "with 2 workers at a time" in said.getvalue()
    monkeypatch.setattr(check, "JOIN_SEC", 0.0)
    with pytest.raises(UserError, match=r"a trial asks for 3 CPUs .*the cluster has 2;"):
        check_file(asks_too_much, "auto", Console(file=said))
