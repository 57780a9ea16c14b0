"""kill -9 of a sweep's whole process tree at random moments, `resume` each time; the result beside an undisturbed run's.

python bench/kill_resume.py [--kills 5] [--seed 0]

One trial at a time, so that the whole sweep must be the same: trials, values, stops, and the metrics of every step bit for bit.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from machine import write_result

from fewshot_ray.spec.document import read_document, to_yaml

ROOT = Path(__file__).resolve().parents[1]
CLI = str(Path(sys.executable).parent / "fewshot-ray")
VOLATILE = {"time", "images_per_sec"}


def sweep_file(folder: Path) -> Path:
    """The quickstart's sweep, shorter, one trial at a time."""
    tree = read_document(ROOT / "sweeps" / "quickstart.yaml").tree
    short: dict[str, Any] = {
        **tree,
        "name": "sweep",
        "storage": str(folder),
        "train": {**tree["train"], "steps": 80},
        "evaluate": {**tree["evaluate"], "every": 20, "samples": 32, "loss_draws": 200},
        "search": {
            **tree["search"],
            "trials": 8,
            "concurrent": 1,
            "scheduler": {"asha": {"metric": "holdout_loss", "grace_steps": 20, "reduction_factor": 2}},
            "confirm": {"top": 1, "seeds": [1]},
        },
    }
    path = folder / "sweep.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_yaml(short))
    return path


def start(folder: Path, first: bool) -> psutil.Popen:
    """`run` the first time, `resume` after that."""
    arguments = ["run", str(sweep_file(folder))] if first else ["resume", str(folder / "sweep")]
    with (folder / "output.txt").open("a") as output:
        return psutil.Popen([CLI, *arguments], stdout=output, stderr=output, start_new_session=True)


def wait_for_training(process: psutil.Popen, folder: Path, seen: int) -> bool:
    """Until this run has started a trial; whether it did before it ended. `seen` is the output's length at its start."""
    while process.poll() is None:
        if " started" in (folder / "output.txt").read_text()[seen:]:
            return True
        time.sleep(0.1)
    return False


def kill_tree(process: psutil.Popen) -> None:
    """kill -9 of the process and of everything below it."""
    members = [process, *process.children(recursive=True)]
    for member in members:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(members, timeout=30)


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal: every trial's state, values and rows, and the leaderboard but for its times."""
    trials: dict[str, Any] = {}
    for trial in sorted((folder / "sweep" / "trials").iterdir()):
        record = json.loads((trial / "trial.json").read_text())
        rows = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        kept = {key: record[key] for key in ("state", "params", "best_step", "values", "seed", "origin", "error")}
        trials[trial.name] = {**kept, "rows": [{key: value for key, value in row.items() if key not in VOLATILE} for row in rows]}
    board = list(csv.DictReader(io.StringIO((folder / "sweep" / "leaderboard.csv").read_text())))
    return {"trials": trials, "board": [{k: v for k, v in row.items() if k not in ("train_sec", "started", "ended")} for row in board]}


def finished_trials(folder: Path) -> dict[str, float]:
    """Trials on record as ended, with the time their evaluations were last written."""
    result = {}
    for path in (folder / "sweep" / "trials").glob("*/trial.json"):
        if json.loads(path.read_text())["state"] != "RUNNING":
            result[path.parent.name] = (path.parent / "metrics.jsonl").stat().st_mtime
    return result


def main() -> None:
    """Run, kill, compare; exits with 1 where anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "kill-resume")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    calm, disturbed = arguments.folder / "calm", arguments.folder / "disturbed"
    started = time.perf_counter()
    calm.mkdir(parents=True)
    disturbed.mkdir()
    if start(calm, first=True).wait() != 0:
        raise SystemExit((calm / "output.txt").read_text())
    seconds = time.perf_counter() - started
    print(f"undisturbed: {seconds:.0f} s", flush=True)
    draw = random.Random(arguments.seed)
    kills: list[dict[str, float]] = []
    finished: dict[str, float] = {}
    for kill in range(arguments.kills):
        output = disturbed / "output.txt"
        seen = len(output.read_text()) if output.exists() else 0
        process = start(disturbed, first=kill == 0)
        if not wait_for_training(process, disturbed, seen):
            print(f"run {kill} ended before its kill", flush=True)
            break
        # From the moment its first trial starts.
        moment = draw.uniform(0, seconds / 3)
        time.sleep(moment)
        kill_tree(process)
        finished = finished_trials(disturbed) | finished
        kills.append({"after_sec": round(moment, 1), "trials_finished": len(finished)})
        print(kills[-1], flush=True)
    if start(disturbed, first=False).wait() != 0:
        raise SystemExit((disturbed / "output.txt").read_text())
    after = finished_trials(disturbed)
    rerun = [name for name, written in finished.items() if after[name] != written]
    a, b = outcome(calm), outcome(disturbed)
    differing = [name for name in sorted(a["trials"].keys() | b["trials"].keys()) if a["trials"].get(name) != b["trials"].get(name)]
    figures = {
        "kills": kills,
        "trials": len(a["trials"]),
        "rows": sum(len(trial["rows"]) for trial in a["trials"].values()),
        "finished_trials_run_again": rerun,
        "trials_that_differ": differing,
        "leaderboards_equal": a["board"] == b["board"],
    }
    print(
        figures,
        write_result("kill_resume", f"python bench/kill_resume.py --kills {arguments.kills} --seed {arguments.seed}", figures),
        sep="\n",
    )
    if rerun or differing or a["board"] != b["board"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
