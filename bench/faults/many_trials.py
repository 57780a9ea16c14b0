"""A sweep of many short trials: what it leaves in storage, in memory and running.

python bench/faults/many_trials.py [--trials 1000]

The trials train for two steps each, on Ray, with successive halving, confirmation and a search of the real kind. Memory is read from the
trial numbered a tenth of all on, when everything that is allocated once has been.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import ray
from ray.util import placement_group_table
from rich.console import Console

from bench.machine import write_result
from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.cluster.session import ray_session
from fewshot_ray.search.opened import planned_sweep
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.ranges import FloatRange, IntRange
from fewshot_ray.storage import Folder
from tests.trial.tiny import document

ROOT = Path(__file__).resolve().parents[2]

MIB = 2**20
MOST_GROWTH = 0.10
KEPT = 5
EXPECTED = (
    r"spec\.yaml|study\.journal|leaderboard\.csv|report\.html|cache/.+",
    r"trials/[\w-]+/(spec\.yaml|trial\.json|metrics\.jsonl|events\.out\.tfevents\.[^/]+|samples/step_\d+\.png)",
)


def sweep_file(trials: int, storage: Path) -> Document:
    """The smallest network, two numbers to search, two evaluations a trial."""
    method = {"ant": {"noise_steps": IntRange(1, 3), "noise_norm": "moments", "guidance": 0}}
    return Document(
        {
            **document(
                method=method,
                train={"steps": 2, "lr": FloatRange(1e-4, 1e-2, log=True)},
                evaluate={"every": 1, "samples": 0, "loss_draws": 4, "metrics": ["holdout_loss"], "grid_images": 4},
                search={
                    "trials": trials,
                    "keep_checkpoints": KEPT,
                    "scheduler": {"asha": {"metric": "holdout_loss", "grace_steps": 1, "reduction_factor": 2}},
                    "confirm": {"top": 1, "seeds": [1]},
                },
            ).tree,
            "name": "many",
            "storage": str(storage),
        },
        "many",
    )


class Memory(threading.Thread):
    """Reads the resident memory of the driver, and of all that it started, as the trials go by."""

    def __init__(self, trials: Path) -> None:
        super().__init__(daemon=True)
        self.trials = trials
        self.ended = threading.Event()
        self.driver: dict[int, int] = {}
        self.below: dict[int, int] = {}

    def run(self) -> None:
        """Until `ended`."""
        driver = psutil.Process()
        while not self.ended.wait(1.0):
            number = len(list(self.trials.glob("t*"))) if self.trials.exists() else 0
            self.driver[number] = driver.memory_info().rss
            self.below[number] = sum(resident(process) for process in driver.children(recursive=True))

    def growth(self, readings: dict[int, int], trials: int) -> dict[str, float]:
        """From the trial a tenth on to the last."""
        first = min((number for number in readings if number >= trials // 10), default=0)
        last = max(readings)
        return {
            "mib_at_first": round(readings[first] / MIB, 1),
            "mib_at_last": round(readings[last] / MIB, 1),
            "growth": round(readings[last] / readings[first] - 1, 4),
        }


def resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def orphans(sweep: Path) -> list[str]:
    """Files that no page of the documentation names, and checkpoints of trials that should keep none."""
    records = {record.id: record for record in SweepFolder(Folder(sweep)).trials()}
    found = []
    for path in sweep.rglob("*"):
        name = path.relative_to(sweep).as_posix()
        if path.is_dir() or any(re.fullmatch(pattern, name) for pattern in EXPECTED):
            continue
        checkpoint = re.fullmatch(r"trials/([\w-]+)/checkpoints/step_(\d+)/(manifest\.json|state\.json|state\.safetensors)", name)
        if checkpoint is None or records[checkpoint[1]].best_step != int(checkpoint[2]):
            found.append(name)
    return found


def main() -> int:
    """Exits with 1 where something is left, or memory grew by more than a tenth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    given = parser.parse_args()
    scratches = set(Path(tempfile.gettempdir()).glob("fewshot-ray-*"))
    with tempfile.TemporaryDirectory() as storage:
        sweep, began = Path(storage) / "many", time.perf_counter()
        memory = Memory(sweep / "trials")
        with ray_session(None):
            memory.start()
            run_sweep(planned_sweep(sweep_file(given.trials, Path(storage))), console=Console(quiet=True))
            memory.ended.set()
            minutes = (time.perf_counter() - began) / 60
            groups = Counter(group["state"] for group in placement_group_table().values())
            groups.pop("REMOVED", None)
            actors = len([one for one in psutil.Process().children(recursive=True) if "TrialActor" in "".join(one.cmdline()[:1])])
        states = Counter(record.state for record in SweepFolder(Folder(sweep)).trials())
        left = orphans(sweep)
        checkpoints = len(list(sweep.glob("trials/*/checkpoints")))
        size = sum(path.stat().st_size for path in sweep.rglob("*") if path.is_file())
    time.sleep(5)
    driver_memory = memory.growth(memory.driver, given.trials)
    figures = {
        "trials": dict(states),
        "minutes": round(minutes, 1),
        "driver_memory": driver_memory,
        "memory_of_ray_and_workers": memory.growth(memory.below, given.trials),
        "orphaned_files": left[:10],
        "trials_with_checkpoints": checkpoints,
        "sweep_mib": round(size / MIB, 1),
        "placement_groups_left": dict(groups),
        "trial_actors_left": actors,
        "processes_left": [" ".join(one.cmdline())[:100] for one in psutil.Process().children(recursive=True)],
        "temporary_folders_left": sorted(str(path) for path in set(Path(tempfile.gettempdir()).glob("fewshot-ray-*")) - scratches),
        "ray_stopped": not ray.is_initialized(),
    }
    print(json.dumps(figures, indent=2))
    print(write_result("many_trials", f"python bench/faults/many_trials.py --trials {given.trials}", figures))
    leaks = left or groups or actors or figures["processes_left"] or figures["temporary_folders_left"]
    return 1 if leaks or driver_memory["growth"] > MOST_GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
