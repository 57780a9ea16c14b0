"""Records the whole curve of many configurations, with every metric, so that searches are replayed on them without training.

python bench/search/record.py --space digits --kept FOLDER [--processes 2] [--configurations N]

Each configuration is trained on each split of the images to its last step. What each has found is kept below FOLDER, so a run that was
stopped goes on; once all are there, bench/search/tables/SPACE.parquet is written: a row an evaluation, with

- `configuration`, `split`, `step`, `cpu_sec` (of training since the evaluation before), `failed` (why no further one came);
- the metrics over ten held-out images, which a search may see;
- `test_...`: the same over the images of the test split, which a search may not see;
- `losses`: of each of the 320 noisings of the held-out images the loss less the source model's, float16, in the order (image, t, eps);

and in its metadata each configuration's values, and the source model's metrics and losses on each split.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load

from bench.claims.kept import results
from bench.search.spaces import HELD_OUT, SPACES, Space
from fewshot_ray.data.digits import digits
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.loop import NonFiniteLossError
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.compose import compose
from fewshot_ray.trial.finished import TestSplit
from fewshot_ray.trial.latent_paths import LatentPaths
from fewshot_ray.trial.trial import Trial

TABLES = Path(__file__).parent / "tables"
CPU = torch.device("cpu")
SOURCE = -1
"""The configuration's number of the source model itself, which isn't trained."""


def held_out(folder: Path, split: int) -> Path:
    """Write HELD_OUT images of the validation split as PNGs, the first of each class; returns their folder."""
    place = folder / f"held-out-{split}"
    place.mkdir(parents=True, exist_ok=True)
    part = digits("validation", split)
    labels = part.labels.tolist()
    for label in range(HELD_OUT):
        Image.fromarray(part.images[labels.index(label), 0].numpy()).save(place / f"{label}.png")
    return place


def recorded(space: Space, configuration: int, split: int, cache: str) -> dict[str, Any]:
    """Train one configuration on one split, and measure it at every evaluation."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        values = space.configuration(max(configuration, 0))
        tree = space.tree(values, split)
        tree["target"]["holdout"] = str(held_out(Path(scratch), split))
        spec = compose(Document(tree, f"{space.name}-{configuration}"))
        trial = Trial(spec, Folder(scratch) / "trial", Folder(cache), device=CPU)
        test = TestSplit(spec, Folder(cache), CPU)
        if configuration == SOURCE:
            source = trial.materials.source_candidate()
            measured = trial.evaluators[0].measure(source, samples=tree["evaluate"]["samples"])
            assert measured.samples is not None
            losses = measured.losses
            row = {"step": 0, "metrics": measured.metrics, "test": on_test(test, source, measured.samples)}
            return {**named(configuration, split, values), "rows": [row | ({} if losses is None else {"losses": losses.loss.tolist()})]}
        rows, failed, before = [], None, time.process_time()
        try:
            for at in trial.evaluations():
                cpu_sec = time.process_time() - before
                rows.append({"step": at.step, "metrics": at.metrics, **at_step(trial, test, at.step), "cpu_sec": cpu_sec})
                before = time.process_time()
        except NonFiniteLossError as error:
            failed = str(error)
        return {**named(configuration, split, values), "rows": rows, "failed": failed}


def named(configuration: int, split: int, values: dict[str, Any]) -> dict[str, Any]:
    """What a result is of."""
    return {"configuration": configuration, "split": split, "values": values if configuration != SOURCE else {}}


def at_step(trial: Trial, test: TestSplit, step: int) -> dict[str, Any]:
    """The measures on the test split of what was just evaluated, over the same samples, and the losses of its noisings."""
    samples = load((trial.folder / "samples").read_bytes(f"step_{step:06d}.safetensors"))["images"]
    (training,) = trial.trainings
    with training.ema.applied():
        found: dict[str, Any] = {"test": on_test(test, trial.materials.candidate(training), samples)}
    if "losses" in trial.folder.names():
        found["losses"] = load((trial.folder / "losses").read_bytes(f"step_{step:06d}.safetensors"))["loss"].tolist()
    return found


def on_test(test: TestSplit, candidate: Candidate, samples: torch.Tensor) -> dict[str, float]:
    """The metrics on the test split, of given samples; without those that compare with no image, as they are the same there."""
    assert test.evaluator.suite is not None
    own = {} if isinstance(test.evaluator.own, LatentPaths) else test.evaluator.own(candidate).metrics
    return {**own, **test.evaluator.suite.compute(samples.cpu())}


def write_table(space: Space, found: list[dict[str, Any]]) -> Path:
    """Write what all runs have found as a Parquet file."""
    sources = {one["split"]: one["rows"][0] for one in found if one["configuration"] == SOURCE}
    runs = sorted((one for one in found if one["configuration"] != SOURCE), key=lambda one: (one["configuration"], one["split"]))
    columns: dict[str, list[Any]] = {name: [] for name in ("configuration", "split", "step", "cpu_sec", "failed")}
    rows = [(one, row) for one in runs for row in one["rows"] or [{"step": 0, "metrics": {}, "test": {}, "cpu_sec": 0.0}]]
    metrics = sorted({name for _, row in rows for name in row["metrics"]})
    tests = sorted({name for _, row in rows for name in row["test"]})
    for one, row in rows:
        last = row is one["rows"][-1] if one["rows"] else True
        cells = (one["configuration"], one["split"], row["step"], row["cpu_sec"], one["failed"] if last else None)
        for name, cell in zip(("configuration", "split", "step", "cpu_sec", "failed"), cells, strict=True):
            columns[name].append(cell)
    arrays: dict[str, Any] = {
        "configuration": pa.array(columns["configuration"], pa.int16()),
        "split": pa.array(columns["split"], pa.int8()),
        "step": pa.array(columns["step"], pa.int32()),
        "cpu_sec": pa.array(columns["cpu_sec"], pa.float32()),
        "failed": pa.array(columns["failed"], pa.string()),
        **{name: pa.array([row["metrics"].get(name) for _, row in rows], pa.float32()) for name in metrics},
        **{f"test_{name}": pa.array([row["test"].get(name) for _, row in rows], pa.float32()) for name in tests},
    }
    if any("losses" in row for _, row in rows):
        draws = len(next(iter(sources.values()))["losses"])
        less = [
            np.subtract(row["losses"], sources[one["split"]]["losses"]) if "losses" in row else np.full(draws, np.nan) for one, row in rows
        ]
        flat = pa.array(np.concatenate(less).astype(np.float16), pa.float16())
        arrays["losses"] = pa.FixedSizeListArray.from_arrays(flat, draws)
    said = {"values": {one["configuration"]: one["values"] for one in runs}, "sources": sources}
    table = pa.table(arrays).replace_schema_metadata({"fewshot_ray": json.dumps(said)})
    TABLES.mkdir(exist_ok=True)
    path = TABLES / f"{space.name}.parquet"
    pq.write_table(table, path, compression="zstd", compression_level=19)
    return path


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", choices=SPACES, default="digits")
    parser.add_argument("--kept", type=Path, required=True, help="folder of what each run has found")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--configurations", type=int, help="only the first so many")
    arguments = parser.parse_args()
    space = SPACES[arguments.space]
    numbers = range(SOURCE, arguments.configurations or space.configurations)
    kept = arguments.kept / space.name
    jobs = {
        f"{configuration}-{split}": (space, configuration, split, str((kept / "cache").resolve()))
        for configuration in numbers
        for split in range(space.splits)
    }
    found = []
    started = time.monotonic()
    for one in results(recorded, jobs, arguments.processes, kept):
        found.append(one)
        print(
            f"{time.monotonic() - started:.0f} s: {len(found)} of {len(jobs)}: {one['configuration']} on split {one['split']}", flush=True
        )
    print(f"{write_table(space, found)} written")


if __name__ == "__main__":
    main()
