"""Steps with torch.compile beside eager ones, and how far their losses part."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from bench.costs.step.cases import EACH, Size
from bench.costs.step.space import loss_of_a_step, make_space
from bench.costs.step.time_and_memory import timed
from fewshot_ray.spec.sections import TrainSpec

COMPILED_STEPS = 5


def compiled_rows(size: Size, device: torch.device, train: TrainSpec, repetitions: int) -> Iterator[dict[str, Any]]:
    """torch.compile against eager, each backbone with plain fine-tuning and with ANT, whose ascent compiles another graph."""
    for name in ("pixel", "latent", "dit"):
        space = make_space(name, size, device, train)
        for case in EACH[:2]:
            torch.compiler.reset()
            configs = case.configs(size, None)
            eager, compiled = (space.training(configs, "full", compiled=flag) for flag in (False, True))
            losses = [(loss_of_a_step(eager), loss_of_a_step(compiled)) for _ in range(COMPILED_STEPS)]
            seconds = [tuple(timed(one.take_step, device)[0] for one in (eager, compiled)) for _ in range(repetitions)]
            row = {
                "space": name,
                "case": case.name,
                "eager_ms": round(1e3 * median(pair[0] for pair in seconds), 2),
                "compiled_ms": round(1e3 * median(pair[1] for pair in seconds), 2),
                "largest_loss_difference": max(abs(a - b) for a, b in losses),
                "losses": losses,
            }
            print({key: value for key, value in row.items() if key != "losses"}, flush=True)
            yield row
