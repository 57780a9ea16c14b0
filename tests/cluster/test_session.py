"""The Ray that a sweep without a cluster runs on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import listening

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
