"""`fewshot-ray run` and `resume` where trials can't end: what is said, the exit code, and what the next `resume` finds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import typer

from fewshot_ray.cli.main import _run
from fewshot_ray.cluster.opened import planned_sweep
from fewshot_ray.report.sweep_folder import SweepFolder
from fewshot_ray.spec.document import to_yaml
from fewshot_ray.storage import Folder
from tests.cluster.conftest import sweep_file
from tests.cluster.test_kill_resume import COMMAND

pytestmark = pytest.mark.ray

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


def test_every_trial_failed(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: exit code 1, one error with the first trial's reason, nothing about an export."""
    opened = planned_sweep(sweep_file("absurd", tmp_path, search={**SEARCH, "trials": 1}, train={"lr": 1e30}))
    with pytest.raises(typer.Exit) as ended:
        _run(opened, None)
    assert ended.value.exit_code == 1
    assert [record.state for record in opened.folder.trials()] == ["FAIL"]
    said = capsys.readouterr()
    [error] = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/absurd: no trial has run to its end, 1 of 1 failed (t0000: " in error
    assert "export" not in said.out + said.err
    assert "Traceback" not in said.out + said.err


def test_a_full_disk(short_folder: Path, tmp_path: Path) -> None:
    """Oracle: exit code 2 with the disk's own words and how to go on, one trial begun and none failed; with room, all end."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("nothing may be mounted here")
    disk, said, ray = tmp_path / "disk", tmp_path / "said", short_folder / "d"
    for folder in (disk, said, ray):
        folder.mkdir()
    file = tmp_path / "roomy.yaml"
    file.write_text(to_yaml(sweep_file("roomy", disk, search=SEARCH, train={"steps": 12}).tree))
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(ray)}
    mounted = ["unshare", "--mount", "sh", "-c", ON_A_SMALL_DISK, "sh", str(disk), str(file), str(said)]
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
