"""kill -9 of everything a run started, and `fewshot-ray resume`: the sweep comes out as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fewshot_ray.search.opened import Opened
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import to_yaml
from fewshot_ray.storage import Folder
from tests.cluster.conftest import results, sweep_file

pytestmark = pytest.mark.ray

COMMAND = [sys.executable, "-c", "from fewshot_ray.cli import main; main()"]


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command line in a session of its own, with a local Ray of its own."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(folder)}
    settings.pop("RAY_ADDRESS", None)
    with open(folder / "output.txt", "ab") as output:
        return subprocess.Popen([*COMMAND, *arguments], stdout=output, stderr=output, env=settings, start_new_session=True)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the process and all below it, Ray's own processes among them; none is let start another."""
    root = psutil.Process(process.pid)
    root.suspend()
    family = [root, *root.children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family[1:], timeout=20)


def rows_on_record(sweep: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in sweep.glob("trials/*/metrics.jsonl"))


def test_killed(undisturbed: Opened, short_folder: Path, tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep, bit for bit. Killed at a random moment, a random while after a random evaluation.

    What is resumed and killed again is test_chaos.py's.
    """
    folder = short_folder / "k"
    folder.mkdir()
    file, sweep = tmp_path / "tiny.yaml", tmp_path / "tiny"
    file.write_text(to_yaml(sweep_file("tiny", tmp_path).tree))
    expected = results(undisturbed.folder)
    total = sum(len(rows) for *_, rows in expected.values())
    draw = random.Random(11)
    after_rows = draw.randrange(1, total - 1)
    process = start(folder, "run", str(file))
    while rows_on_record(sweep) < after_rows:
        assert process.poll() is None, (folder / "output.txt").read_text()
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.1))
    kill_all(process)
    records = {path: path.read_bytes() for path in sweep.glob("trials/*/trial.json")}
    ended = {path: content for path, content in records.items() if b'"RUNNING"' not in content}
    assert len(ended) < len(expected)
    process = start(folder, "resume", str(sweep))
    assert process.wait(120) == 0, (folder / "output.txt").read_text()
    assert all(path.read_bytes() == content for path, content in ended.items())
    assert results(SweepFolder(Folder(sweep))) == expected
    assert (sweep / "leaderboard.csv").exists()
