"""What checkpoints cost: the time a step waits for one, their share of a trial, and their size for each way to choose the parameters.

python bench/costs/checkpoints.py [--seconds 130] [--repeats 20]

The step waits for a copy of the state; the rest (checksums, the disk or S3) happens in a thread. Its CPU time counts as cost all the
same: on a machine whose cores are all busy it is taken from the training.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from bench.machine import write_result
from fewshot_ray.spec.document import Document, read_document
from fewshot_ray.storage import Folder
from fewshot_ray.training.writer import CheckpointWriter
from fewshot_ray.trial.compose import compose, expand, preset_values, with_values
from fewshot_ray.trial.trial import Trial
from tests.faulty_proxy import KEYS, s3_server

ROOT = Path(__file__).resolve().parents[2]

MIB = 2**20
MOST_BLOCKED_SEC = 0.050
MOST_SHARE = 0.02
MOST_SIZE = 0.05
SMALL = ("adaptor", "lora", "bitfit", "difffit")
# At 32x32: the number of parameters does not depend on it, and a step does.
DDPM_CIFAR = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 2,
}
DDPM_CELEBA = {
    "sample_size": 32,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
    "layers_per_block": 2,
}
NETWORKS = {"google/ddpm-cifar10-32": DDPM_CIFAR, "google/ddpm-celebahq-256": DDPM_CELEBA}
MEDIUM = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64, 128, 128],
    "down_block_types": ["DownBlock2D"] * 3,
    "up_block_types": ["UpBlock2D"] * 3,
    "layers_per_block": 1,
}
"""Trained in full, its checkpoint is about 64 MB."""


def document(network: Mapping[str, Any], **sections: Any) -> Document:
    """Plain fine-tuning of a network with random weights on the embedded digits, at the presets but for what is given."""
    tree: dict[str, Any] = {
        "name": "checkpoints",
        "source": {"build": dict(network), "images": "embedded://digits/shots?seed=5"},
        "target": {"images": "embedded://digits/shots", "shots": 10, "holdout": 2},
        "method": {"finetune": {}},
        "train": {},
        "evaluate": {"metrics": ["holdout_loss"], "samples": 0, "grid_images": 0},
    }
    for name, section in sections.items():
        tree[name] = {**tree[name], **section}
    return expand(Document(tree, "checkpoints"))


def trial(document: Document, place: Folder) -> Trial:
    """The preset of a file."""
    spec = compose(with_values(document, preset_values(document)))
    return Trial(spec, place / "trial", place / "cache", device=torch.device("cpu"))


def size_bytes(network: Mapping[str, Any], params: str) -> int:
    """Of the checkpoint after a step."""
    short = document(network, train={"steps": 1, "batch_size": 1, "params": params}, evaluate={"every": 1, "loss_draws": 1})
    with tempfile.TemporaryDirectory() as scratch:
        list(trial(short, Folder(scratch)).evaluations())
        return sum(path.stat().st_size for path in Path(scratch).glob("trial/checkpoints/step_000001/*"))


def sizes(network: Mapping[str, Any]) -> dict[str, Any]:
    """Every small way's checkpoint beside the one of all parameters."""
    full = size_bytes(network, "full")
    return {"full_mib": round(full / MIB, 1), "shares": {params: round(size_bytes(network, params) / full, 4) for params in SMALL}}


@dataclass
class Spent:
    """Seconds that went into checkpoints."""

    blocked: float = 0.0
    """That the training waited."""
    thread: float = 0.0
    """CPU time of the thread that writes."""
    checkpoints: int = 0


@contextmanager
def watched() -> Iterator[Spent]:
    """Counts what checkpoint writers spend."""
    spent = Spent()
    submit, wait, write = CheckpointWriter.submit, CheckpointWriter.wait, CheckpointWriter._write

    def blocking(work: Callable[..., None]) -> Callable[..., None]:
        def timed(writer: CheckpointWriter, *arguments: Any) -> None:
            began, inner = time.perf_counter(), spent.blocked
            work(writer, *arguments)
            spent.blocked = inner + time.perf_counter() - began  # submit waits too: not twice

        return timed

    def in_thread(writer: CheckpointWriter, *arguments: Any) -> None:
        began = time.thread_time()
        write(writer, *arguments)
        spent.thread += time.thread_time() - began
        spent.checkpoints += 1

    with (
        mock.patch.object(CheckpointWriter, "submit", blocking(submit)),
        mock.patch.object(CheckpointWriter, "wait", blocking(wait)),
        mock.patch.object(CheckpointWriter, "_write", in_thread),
    ):
        yield spent


def share(file: Document) -> dict[str, Any]:
    """What part of a trial's time its checkpoints take."""
    with tempfile.TemporaryDirectory() as scratch, watched() as spent:
        run = trial(file, Folder(scratch))
        began = time.perf_counter()
        evaluations = len(list(run.evaluations()))
        wall = time.perf_counter() - began
    return {
        "wall_sec": round(wall, 1),
        "evaluations": evaluations,
        "checkpoints": spent.checkpoints,
        "blocked_share": round(spent.blocked / wall, 4),
        "with_the_thread": round((spent.blocked + spent.thread) / wall, 4),
    }


def steady(seconds: float) -> Document:
    """The 64 MB network at the preset of checkpoints, with three evaluations in about so many seconds."""
    every = 30
    with tempfile.TemporaryDirectory() as scratch:
        run = trial(document(MEDIUM, train={"steps": every}, evaluate={"every": every}), Folder(scratch))
        rate = [evaluation.images_per_sec for evaluation in run.evaluations()][-1] / run.spec.file.train.batch_size
    steps = max(3, int(seconds * rate))
    return document(MEDIUM, train={"steps": steps}, evaluate={"every": max(1, steps // 3)})


def quickstart() -> Document:
    """The quickstart's trial as it is."""
    return expand(read_document(ROOT / "sweeps" / "quickstart.yaml"))


def blocked(place: Folder, repeats: int) -> dict[str, Any]:
    """Seconds that a step waits for a checkpoint of 64 MB of fresh tensors, written at `place`."""
    tensors = {str(number): torch.randn(MIB) for number in range(16)}
    writer, waited, whole = CheckpointWriter(place), [], []
    for step in range(1, repeats + 1):
        began = time.perf_counter()
        writer.submit(step, tensors, {}, lambda saved: set(saved[-2:]))
        waited.append(time.perf_counter() - began)
        writer.wait()
        whole.append(time.perf_counter() - began)
    writer.close()
    return {
        "median_sec": round(statistics.median(waited), 4),
        "most_sec": round(max(waited), 4),
        "whole_at_the_place_sec": round(statistics.median(whole), 3),
    }


@contextmanager
def s3() -> Iterator[Folder]:
    """A bucket of a server on this machine."""
    with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch)) as port:
        settings = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": KEYS[0], "AWS_SECRET_ACCESS_KEY": KEYS[1]}
        with mock.patch.dict(os.environ, settings):
            yield Folder("s3://bucket/checkpoints")


def main() -> int:
    """Exits with 1 where a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=180.0, help="of the trial whose checkpoints are timed")
    parser.add_argument("--repeats", type=int, default=20, help="checkpoints of 64 MB")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, s3() as bucket:
        waits = {"disk": blocked(Folder(scratch), given.repeats), "s3": blocked(bucket, given.repeats)}
    print(waits, flush=True)
    shares = {"quickstart's trial": share(quickstart()), "64 MB network, presets": share(steady(given.seconds))}
    print(shares, flush=True)
    small = {name: sizes(network) for name, network in NETWORKS.items()}
    missed = [f"blocked {place}" for place, wait in waits.items() if wait["median_sec"] > MOST_BLOCKED_SEC]
    missed += [f"share of {name}" for name, part in shares.items() if part["with_the_thread"] > MOST_SHARE]
    missed += [f"{name} {params}" for name, size in small.items() for params, part in size["shares"].items() if part > MOST_SIZE]
    figures = {"a_step_waits_for_64_mb": waits, "share_of_a_trial": shares, "sizes": small, "missed": missed}
    print(json.dumps(figures, indent=2))
    print(write_result("checkpoints", f"python bench/costs/checkpoints.py --seconds {given.seconds:g} --repeats {given.repeats}", figures))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
