"""A trial of two Ray Train workers (gloo, CPU) beside one worker with the same global batch: the largest relative difference of any metric.

python bench/faults/two_workers.py
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from bench.machine import write_result
from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.cluster.session import ray_session
from fewshot_ray.search.opened import planned_sweep
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.spec.document import Document, read_document

ROOT = Path(__file__).resolve().parents[2]


def document(workers: int, storage: str) -> Document:
    """The quickstart's methods at fixed values, 60 steps, an evaluation every 10."""
    base = read_document(ROOT / "sweeps" / "quickstart.yaml")
    tree: dict[str, Any] = {
        **base.tree,
        "name": f"workers-{workers}",
        "storage": storage,
        "method": {
            "ant": {"noise_steps": 3, "guidance": 0.2, "noise_norm": "moments", "classifier_steps": 50},
            "sdft": {"lambda_distill": 0.1, "gamma_distill": 0.5, "lambda_aux": 0.1},
        },
        "source": {**base.tree["source"], "images": "embedded://digits/source"},
        "train": {**base.tree["train"], "steps": 60, "lr": 3e-4},
        "evaluate": {**base.tree["evaluate"], "every": 10, "metrics": ["holdout_loss"], "samples": 0, "grid_images": 0},
        "search": {"trials": 1},
        "resources": {"workers": workers, "cpus_per_worker": 1},
    }
    return replace(base, tree=tree)


def rows(workers: int, storage: str) -> list[EvaluationRow]:
    """The evaluations of the run."""
    opened = planned_sweep(document(workers, storage))
    run_sweep(opened, console=Console(quiet=True))
    return opened.folder.rows("t0000")


def relative(a: float, b: float) -> float:
    """|a - b| / |b|."""
    return abs(a - b) / abs(b)


def main() -> None:
    """Measure and write results/two_workers.json."""
    with tempfile.TemporaryDirectory() as storage, ray_session(None):
        one, two = rows(1, storage), rows(2, storage)
    differences = {
        "train_loss": max(relative(b.train_loss, a.train_loss) for a, b in zip(one, two, strict=True)),
        "holdout_loss": max(relative(b.metrics["holdout_loss"], a.metrics["holdout_loss"]) for a, b in zip(one, two, strict=True)),
    }
    figures = {"evaluations": len(one), "largest_relative_difference": differences}
    print(figures, write_result("two_workers", "python bench/faults/two_workers.py", figures), sep="\n")


if __name__ == "__main__":
    main()
