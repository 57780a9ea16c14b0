"""What Ray costs a one-worker trial: the start of a warm one, and Ray's own share of a minute's trial.

python bench/costs/ray_overhead.py [--steps 1800] [--repeats 3]

Start: from the moment a job is handed to Tune to the record of its first evaluation, which is after one step: an upper bound of the
time to the first step. Share: the same trial through the sweep and in a plain loop in this process, in turn; medians.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from rich.console import Console

from bench.machine import write_result
from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.cluster.session import ray_session
from fewshot_ray.search.opened import planned_sweep
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document, read_document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import compose, with_values
from fewshot_ray.trial.trial import Trial

ROOT = Path(__file__).resolve().parents[2]


def document(name: str, storage: str, *, steps: int, every: int, trials: int) -> Document:
    """Plain fine-tuning of the embedded model; several trials differ by their learning rate alone."""
    base = read_document(ROOT / "sweeps" / "quickstart.yaml")
    tree: dict[str, Any] = {
        **base.tree,
        "name": name,
        "storage": storage,
        "method": {"finetune": {}},
        "train": {**base.tree["train"], "steps": steps},
        "evaluate": {"every": every, "metrics": ["holdout_loss"], "loss_draws": 200, "grid_images": 0},
        "search": {"trials": trials, "concurrent": 1},
    }
    return replace(base, tree=tree)


def starts(folder: SweepFolder) -> list[float]:
    """Seconds from each job's hand-over to its first evaluation's record."""
    records = [record for record in folder.trials() if record.kind == "search"]
    return [folder.rows(record.id)[0].time - datetime.fromisoformat(record.started).timestamp() for record in records]


def wall(folder: SweepFolder) -> float:
    """Seconds from the last job's hand-over to its end."""
    record = [record for record in folder.trials() if record.kind == "search"][-1]
    assert record.ended is not None
    return (datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)).total_seconds()


def direct(spec_document: Document, scratch: str) -> float:
    """Seconds of the same trial in a plain loop."""
    started = time.perf_counter()
    trial = Trial(compose(spec_document), Folder(scratch) / "direct", Folder(scratch) / "cache", device=torch.device("cpu"))
    for _ in trial.evaluations():
        pass
    shutil.rmtree(f"{scratch}/direct")
    return time.perf_counter() - started


def main() -> None:
    """Measure and write results/ray_overhead.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(quiet=True)
    with tempfile.TemporaryDirectory() as scratch, ray_session(None):
        short = planned_sweep(document("short", scratch, steps=2, every=1, trials=8))
        run_sweep(short, console=console)
        first, *warm = starts(short.folder)
        through_ray, plain = [], []
        for repeat in range(arguments.repeats):
            # Two trials in turn: the second is the warm one.
            long = document(f"long-{repeat}", scratch, steps=arguments.steps, every=arguments.steps // 10, trials=2)
            opened = planned_sweep(long)
            run_sweep(opened, console=console)
            through_ray.append(wall(opened.folder))
            plain.append(direct(with_values(opened.document, {"train.lr": 1e-4}), scratch))
            print(repeat, through_ray[-1], plain[-1], flush=True)
    figures = {
        "cold_start_sec": round(first, 2),
        "warm_start_sec": {"median": round(statistics.median(warm), 3), "max": round(max(warm), 3)},
        "ray_share": round(1 - statistics.median(plain) / statistics.median(through_ray), 4),
        "trial_through_ray_sec": through_ray,
        "trial_in_a_loop_sec": plain,
    }
    print(figures, write_result("ray_overhead", " ".join(["python", "bench/costs/ray_overhead.py", *sys.argv[1:]]), figures), sep="\n")


if __name__ == "__main__":
    main()
