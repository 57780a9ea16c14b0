"""A sweep on a real disk that fills up: what `run` says, and what `resume` finds once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import to_yaml
from fewshot_ray.storage import Folder
from tests.cluster.conftest import sweep_file
from tests.cluster.test_kill_resume import COMMAND

pytestmark = pytest.mark.roundtrip

SEARCH = {"trials": 2, "sampler": "random", "scheduler": None}
# The sweep's disk alone: the rest of this machine has room. It would hold a checkpoint (282 kB) and nothing beside it. Then the larger
# one that a user gives it.
ON_A_SMALL_DISK = """
disk=$1 file=$2 said=$3; shift 3
mount -t tmpfs -o size=300k fewshot-ray-test "$disk" || exit 99
"$@" run "$file" >"$said/run" 2>&1; echo "ended with $?" >>"$said/run"
cp -r "$disk" "$said/before"
mount -o remount,size=100m "$disk"
"$@" resume "$disk/roomy" >"$said/resume" 2>&1; echo "ended with $?" >>"$said/resume"
cp -r "$disk" "$said/after"
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """Oracle: exit code 2 with the disk's own words and how to go on, one trial begun and none failed; with room, all end."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("nothing may be mounted here")
    disk, said = tmp_path / "disk", tmp_path / "said"
    for folder in (disk, said):
        folder.mkdir()
    file = tmp_path / "roomy.yaml"
    file.write_text(to_yaml(sweep_file("roomy", disk, search=SEARCH, train={"steps": 12}).tree))
    mounted = ["unshare", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), str(file), str(said)]
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp", ignore_cleanup_errors=True) as ray:  # a short path, for Ray's sockets
        settings = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": ray}
        assert subprocess.run([*mounted, *COMMAND], env=settings, timeout=600).returncode == 0
    run, resume = ((said / name).read_text() for name in ("run", "resume"))
    assert run.endswith("ended with 2\n"), run
    [error] = [line for line in run.splitlines() if line.startswith("error: ")]
    assert f"storage {disk}/roomy/trials/t0000" in error
    assert "(No space left on device); freeing space there, or another place, is right" in error
    assert error.endswith(f"; `fewshot-ray resume {disk}/roomy` goes on")
    assert len(run.splitlines()) <= 7, run  # where it is, what is done, a warning, that t0000 began, the error, the code
    assert "FullError: storage" in (said / "before" / "roomy" / "ray.log").read_text()
    records = SweepFolder(Folder(said / "before" / "roomy")).trials()
    assert [(record.id, record.state, record.error) for record in records] == [("t0000", "RUNNING", None)]
    assert resume.endswith("ended with 0\n"), resume
    assert [record.state for record in SweepFolder(Folder(said / "after" / "roomy")).trials()] == ["COMPLETE", "COMPLETE"]
