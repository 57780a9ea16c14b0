"""A sweep's folder as a real sweep leaves it, made with the report's own writers."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path

import numpy
import pytest
from PIL import Image

from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder, TrialRecord
from fewshot_ray.storage import Folder

STEPS = 160
EVERY = 40


def png(seed: int) -> bytes:
    """A 4 x 4 grid of 8 x 8 grey noise."""
    pixels = numpy.random.default_rng(seed).integers(0, 256, (32, 32), dtype=numpy.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def curve(seed: int, lr: float, steps: int) -> list[EvaluationRow]:
    """Falls, then overfits; the faster the higher the learning rate."""
    draw = random.Random(seed)
    rows = []
    for step in range(EVERY, steps + 1, EVERY):
        x = step / STEPS * lr / 1e-4
        metrics = {
            "holdout_loss": 0.15 + 0.1 * math.exp(-4 * x) + 0.02 * x + draw.gauss(0, 0.002),
            "kid": 0.4 * math.exp(-x) + draw.random() / 50,
        }
        rows.append(EvaluationRow(step, 1.7e9 + step, metrics, 0.3 * math.exp(-x), lr, 800.0 + draw.random(), 1.0))
    return rows


def add_trial(sweep: SweepFolder, record: TrialRecord, steps: int = STEPS) -> None:
    rows = curve(record.seed * 100 + (record.number or 0), float(record.params.get("train.lr", 5e-5)), steps)
    for row in rows:
        sweep.append_row(record.id, row)
        sweep.write_grid(record.id, row.step, png(row.step))
    best = min(rows, key=lambda row: row.metrics["holdout_loss"])
    ended = record.state in ("COMPLETE", "PRUNED")
    fields = {**vars(record), "train_sec": 4.2, "started": "2025-01-02T03:04:05+00:00"}
    if ended:
        fields |= {"best_step": best.step, "values": best.metrics, "ended": "2025-01-02T03:04:09+00:00"}
    sweep.write_trial(TrialRecord(**fields))


@pytest.fixture
def sweep(tmp_path: Path) -> SweepFolder:
    made = SweepFolder(Folder(tmp_path / "quickstart"))
    draw = random.Random(0)
    add_trial(
        made, TrialRecord("t0000", 0, "search", "preset", "ant preset", 0, "COMPLETE", {"method.ant.noise_steps": 10, "train.lr": 5e-5})
    )
    add_trial(made, TrialRecord("t0001", 1, "search", "plain", "plain fine-tuning", 0, "COMPLETE", {"train.lr": 5e-5}))
    for number in range(2, 12):
        params = {
            "method.ant.noise_steps": draw.randint(1, 20),
            "method.ant.noise_step_size": 10 ** draw.uniform(-2.3, -1),
            "train.params": draw.choice(["full", "adaptor"]),
        }
        params["train.lr"] = 10 ** draw.uniform(-5, -3.5)
        pruned = number % 3 == 0
        record = TrialRecord(f"t{number:04d}", number, "search", "sampler", "ant", 0, "PRUNED" if pruned else "COMPLETE", params)
        add_trial(made, record, steps=80 if pruned else STEPS)
    made.write_trial(
        TrialRecord(
            "t0012",
            12,
            "search",
            "sampler",
            "ant",
            0,
            "FAIL",
            {"train.lr": 3e-4},
            error="loss is nan at step 12; the last finite one is 0.4",
        )
    )
    add_trial(
        made,
        TrialRecord("t0013", 13, "search", "sampler", "ant <b>&", 0, "RUNNING", {"train.lr": 1e-4, "method.ant.noise_steps": 3}),
        steps=80,
    )
    for seed in (1, 2, 3):
        add_trial(
            made, TrialRecord(f"confirm-t0000-seed{seed}", None, "confirm", "t0000", "ant preset", seed, "COMPLETE", {"train.lr": 1.4e-4})
        )
        add_trial(
            made,
            TrialRecord(f"control-t0000-seed{seed}", None, "control", "t0000", "plain fine-tuning", seed, "COMPLETE", {"train.lr": 1e-4}),
        )
    add_trial(made, TrialRecord("refit-t0000", None, "refit", "t0000", "ant preset, all images", 0, "COMPLETE", {"train.lr": 1.4e-4}))
    return made
