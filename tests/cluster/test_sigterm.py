"""A worker that is told to end saves first."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import latest_checkpoint, saved_steps
from tests.trial.tiny import trial

SECTIONS = {"train": {"steps": 100_000, "lr": 1e-3}, "evaluate": {"every": 100_000, "samples": 0, "grid_images": 0}}
WORKER = """
import sys
import fewshot_ray.trial.trial as module
from fewshot_ray.cluster.ending import NOTICE, sigterm_gives_notice
from tests.cluster.test_sigterm import SECTIONS
from tests.trial.tiny import trial
module.PART_SEC = 0.2
run = trial(sys.argv[1], **SECTIONS)
run.told_to_end = NOTICE
with sigterm_gives_notice(lambda: run.busy):
    print("ready", flush=True)
    list(run.evaluations())
"""


def test_a_checkpoint_before_the_end(tmp_path: Path) -> None:
    """Oracle: a real process and a real signal: it says why it ends, within a second of work, and its last step is on the disk."""
    root = Path(__file__).parents[2]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path)], cwd=root, text=True, **pipes)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(2)
        assert saved_steps(Folder(tmp_path) / "trial" / "checkpoints") == []
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=20)[1].splitlines()[-1]
    finally:
        process.kill()
        process.wait()
    checkpoint = latest_checkpoint(Folder(tmp_path) / "trial" / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step > 1
    assert said == f"fewshot_ray.errors.SavedAndEndedError: SIGTERM; saved at step {checkpoint.step}"
    resumed = trial(tmp_path, **SECTIONS)
    resumed._resume()
    assert resumed.trainings[0].step == checkpoint.step
    assert len(resumed.trainings[0].recent_losses) == checkpoint.step


def test_one_that_waits_ends_at_once(tmp_path: Path) -> None:
    """Oracle: a real process between two evaluations: all is saved, and nobody would look at a note that it should end."""
    waiting = WORKER.replace(
        "list(run.evaluations())", "results = run.evaluations(); next(results)\n    print('waits', flush=True); input()"
    )
    waiting = waiting.replace("**SECTIONS)", "train={'steps': 4}, evaluate={'every': 2, 'samples': 0, 'grid_images': 0})")
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", waiting, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "waits\n"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert saved_steps(Folder(tmp_path) / "trial" / "checkpoints") == [2]
