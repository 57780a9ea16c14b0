"""The digits benchmark: the exported winner against the source model and tuned plain fine-tuning, on the untouched test split.

python bench/claims/quality.py [--seeds 5]

For every seed (of the split, the search and the training) two sweeps of as many trials: one as in sweeps/quickstart.yaml, one of plain
fine-tuning alone over the same learning rates. Both choose on the validation split; both winners are measured on the test split with
the same samples' noise. Differences are paired by seed, with 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from rich.console import Console

from bench.claims.intervals import paired
from bench.machine import write_result
from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.cluster.session import ray_session
from fewshot_ray.report.export import trial_spec
from fewshot_ray.search.opened import planned_sweep
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.document import Document, read_document
from fewshot_ray.trial.finished import TestSplit, load_finished

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
REPORTED: Mapping[str, Literal["min", "max"]] = {"holdout_loss": "min", "kid": "min", "intra_distance": "max", "memorisation": "min"}


def sweep_document(seed: int, arm: str, storage: Path) -> Document:
    """The quickstart's file with another seed, and in the plain arm without methods; no reruns."""
    document = read_document(ROOT / "sweeps" / "quickstart.yaml")
    parts = {
        key: f"embedded://digits/{part}?seed={seed}" for key, part in (("images", "shots"), ("holdout", "validation"), ("test", "test"))
    }
    search = {key: value for key, value in document.tree["search"].items() if key != "confirm"}
    tree: dict[str, Any] = {
        **document.tree,
        "name": f"{arm}-{seed}",
        "seed": seed,
        "storage": str(storage),
        "target": parts,
        "search": search,
    }
    if arm == "plain":
        tree["method"] = {"finetune": {}}
    return replace(document, tree=tree)


def measure(seed: int, arm: str, storage: Path, console: Console) -> dict[str, dict[str, float]]:
    """Run one sweep and measure its winner (and the source model) on the test split."""
    opened = planned_sweep(sweep_document(seed, arm, storage))
    run_sweep(opened, console=console)
    record = exported_trial(opened.folder, opened.file)
    spec = trial_spec(opened.folder, record)
    cache = opened.folder.folder / "cache"
    split = TestSplit(spec, cache, CPU)
    assert record.best_step is not None
    finished = load_finished(spec, opened.folder.trial(record.id), record.best_step, cache=cache, device=CPU)
    return {"source": split.measure_source(), arm: split.measure(finished.candidate)}


def main() -> None:
    """Measure and write results/quality.json and a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    storage = ROOT / "runs" / "quality"
    shutil.rmtree(storage, ignore_errors=True)
    console = Console(quiet=True)
    by_seed: list[dict[str, dict[str, float]]] = []
    with ray_session(None):
        for seed in seeds:
            by_seed.append(measure(seed, "regularised", storage, console) | measure(seed, "plain", storage, console))
            print(seed, by_seed[-1], flush=True)
    table = {}
    for metric, direction in REPORTED.items():
        means = {model: statistics.fmean(one[model][metric] for one in by_seed) for model in ("source", "plain", "regularised")}
        interval = paired([one["regularised"][metric] - one["plain"][metric] for one in by_seed], direction)
        table[metric] = {**means, **interval}
        print(
            f"| {metric} | {means['source']:.4g} | {means['plain']:.4g} | {means['regularised']:.4g} | "
            f"{interval['difference']:+.4g} ({interval['low']:+.4g} .. {interval['high']:+.4g}) | {table[metric]['verdict']} |"
        )
    print(write_result("quality", f"python bench/claims/quality.py --seeds {len(seeds)}", {"by_seed": by_seed, "table": table}))


if __name__ == "__main__":
    main()
