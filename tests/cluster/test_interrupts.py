"""Ctrl-C, SIGTERM and the loss of Ray itself: what is done is saved, nothing is left running, and the sweep comes out as if undisturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fewshot_ray.cluster.driver import Interrupted, _fit
from fewshot_ray.search.opened import Opened
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import to_yaml
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import latest_checkpoint
from tests.cluster.conftest import results, sweep_file
from tests.cluster.test_kill_resume import kill_all, start

pytestmark = pytest.mark.ray


def until(condition: Callable[[], object], process: subprocess.Popen[bytes], said: Path) -> None:
    """Wait for a condition, or fail with what the process said when it ends before."""
    while not condition():
        assert process.poll() is None, said.read_text()
        time.sleep(0.005)


def test_ctrl_c(short_folder: Path, tmp_path: Path) -> None:
    """Oracle: the exit code, the state on record, a checkpoint past the last evaluation's, nothing left below the process.

    A SIGTERM's end is test_launch.py's: that is how a Ray job is stopped.
    """
    folder = short_folder / "ctrl-c"
    folder.mkdir()
    long = sweep_file("long", tmp_path, train={"steps": 1_000_000}, evaluate={"every": 500}, search={"trials": 2, "scheduler": None})
    file, sweep = tmp_path / "long.yaml", tmp_path / "long"
    file.write_text(to_yaml(long.tree))
    process = start(folder, "run", str(file))
    try:
        rows = sweep / "trials" / "t0000" / "metrics.jsonl"
        until(lambda: rows.exists() and rows.read_bytes().endswith(b"\n"), process, folder / "output.txt")
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        ended = process.wait(60)
    finally:
        kill_all(process) if process.poll() is None else None
    said = (folder / "output.txt").read_text()
    assert ended == 130, said
    assert "Ctrl-C: the trials save where they are" in said
    assert f"go on with: fewshot-ray resume {sweep}" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert not (sweep / "lease.json").exists()
    records = SweepFolder(Folder(sweep)).trials()
    assert [(record.id, record.state) for record in records] == [("t0000", "RUNNING")]
    latest = latest_checkpoint(Folder(sweep) / "trials" / "t0000" / "checkpoints")
    assert latest is not None
    assert latest.step > latest.info["history"][-1]["step"]


def test_twice_ends_at_once(short_folder: Path, tmp_path: Path) -> None:
    """Oracle: the second signal, whichever, is not waited out, and the exit code is of that one; the trial stays one to go on with."""
    folder = short_folder / "twice"
    folder.mkdir()
    file, sweep = tmp_path / "tiny.yaml", tmp_path / "tiny"
    file.write_text(to_yaml(sweep_file("tiny", tmp_path).tree))
    process = start(folder, "run", str(file))
    try:
        until((sweep / "trials" / "t0000" / "trial.json").exists, process, folder / "output.txt")
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
    finally:
        kill_all(process) if process.poll() is None else None
    said = (folder / "output.txt").read_text()
    assert code == 143, said
    assert "Traceback" not in said
    assert not (sweep / "lease.json").exists()
    assert [record.state for record in SweepFolder(Folder(sweep)).trials()] == ["RUNNING"]


@pytest.mark.parametrize("received", [[], [signal.SIGINT], [signal.SIGINT, signal.SIGTERM]])
def test_what_breaks_while_tune_is_interrupted(received: list[int]) -> None:
    """Oracle: an error is the sweep's own until a second signal has torn Tune out of the middle of something."""

    class Torn:
        def fit(self) -> None:
            raise AssertionError("PENDING")

    with pytest.raises((Interrupted, AssertionError)) as raised:
        _fit(Torn(), received)  # type: ignore[arg-type]
    assert isinstance(raised.value, Interrupted if len(received) > 1 else AssertionError)
    assert getattr(raised.value, "exit_code", None) == (143 if len(received) > 1 else None)


def test_a_lost_ray(undisturbed: Opened, short_folder: Path, tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep, bit for bit, without anybody's help; the raylet is killed as the first trial begins."""
    folder = short_folder / "lost"
    folder.mkdir()
    file, sweep = tmp_path / "tiny.yaml", tmp_path / "tiny"
    file.write_text(to_yaml(sweep_file("tiny", tmp_path).tree))
    process = start(folder, "run", str(file))
    try:
        until((sweep / "trials" / "t0000" / "trial.json").exists, process, folder / "output.txt")
        raylets = [one.pid for one in psutil.Process(process.pid).children() if one.name() == "raylet"]
        assert len(raylets) == 1
        os.kill(raylets[0], signal.SIGKILL)
        assert process.wait(120) == 0, (folder / "output.txt").read_text()
    finally:
        kill_all(process) if process.poll() is None else None
    assert "starting anew" in (folder / "output.txt").read_text()
    assert results(SweepFolder(Folder(sweep))) == results(undisturbed.folder)
