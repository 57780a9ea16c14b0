"""What PyTorch's settings do to a training step: its time and its loss beside a plain step's, and on a GPU how often the host waits.

python bench/costs/step/step_settings.py [--device cuda] [--repetitions 9] [--quick]

- plain: as `run` trains in fp32
- tf32: matrix products in TF32 too (convolutions are by PyTorch's default)
- channels_last: the network's weights in NHWC
- unfused: AdamW by PyTorch's foreach kernels, which `run` doesn't use

`waits_per_step` counts what PyTorch's own watch (`torch.cuda.set_sync_debug_mode`) reports in a step; null on a CPU. Weights are
random. Exits with 1 where the host waits within a plain step.
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch

from bench.costs.step.cases import EACH, QUICK, SIZES, Case
from bench.costs.step.space import Space, loss_of_a_step, make_space
from bench.costs.step.time_and_memory import timed
from bench.machine import write_result
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.loop import Training

COMPARED_STEPS = 5


def plain(training: Training) -> None:
    """Leaves everything as it is."""


def tf32(training: Training) -> None:
    """Of the process, until `measure` sets it back."""
    torch.backends.cuda.matmul.allow_tf32 = True


def channels_last(training: Training) -> None:
    """Of the trained network."""
    training.method.modules()["network"].to(memory_format=torch.channels_last)


def unfused(training: Training) -> None:
    """Before the first step, which makes the optimisers' state."""
    for optimizer in training.method.optimizers().values():
        for settings in optimizer.param_groups:
            settings.update(fused=False, foreach=True)


SETTINGS: Mapping[str, Callable[[Training], None]] = {"plain": plain, "tf32": tf32, "channels_last": channels_last, "unfused": unfused}
CASES = [case for case in EACH if case.name in ("finetune", "ant", "sdft", "ddpm_pa")]


def waits(training: Training, device: torch.device) -> int | None:
    """How often the host waits for the GPU in a step; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            training.take_step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in said)


def measure(space: Space, case: Case, repetitions: int) -> dict[str, dict[str, Any]]:
    """By setting: milliseconds of a step, how far its losses part from the plain ones, and its waits."""
    found: dict[str, dict[str, Any]] = {}
    losses: dict[str, list[float]] = {}
    for name, change in SETTINGS.items():
        if name == "tf32" and space.device.type != "cuda":
            continue
        training = space.training(case.configs(space.size, None), "full")
        change(training)
        losses[name] = [loss_of_a_step(training) for _ in range(COMPARED_STEPS)]
        waited = waits(training, space.device)
        seconds = median(timed(training.take_step, space.device)[0] for _ in range(repetitions))
        torch.backends.cuda.matmul.allow_tf32 = False
        apart = max(abs(own / other - 1) for own, other in zip(losses[name], losses["plain"], strict=True))
        found[name] = {"step_ms": round(1e3 * seconds, 2), "losses_apart": float(f"{apart:.2g}"), "waits_per_step": waited}
        print(f"{space.name} {case.name} {name}: {found[name]}", flush=True)
    return found


def main() -> int:
    """Measure, print and write results/step_settings*.json; 1 where the host waits within a plain step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="tiny networks: whether it runs; nothing is written")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device, size = torch.device(given.device), QUICK if given.quick else SIZES[given.device]
    gc.freeze()
    train = TrainSpec(batch_size=size.batch, micro_batch=size.batch, lr=1e-5)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in ("pixel", "dit"):
        space = make_space(name, size, device, train)
        found |= {f"{name} {case.name}": measure(space, case, 1 if given.quick else given.repetitions) for case in CASES}
    gc.unfreeze()
    waiting = [case for case, rows in found.items() if rows["plain"]["waits_per_step"]]
    if not given.quick:
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        name = f"step_settings{'_cuda' if device.type == 'cuda' else ''}"
        figures = {"gpu": gpu, "batch": size.batch, "cases": found, "waiting": waiting}
        print(write_result(name, " ".join(["python", "bench/costs/step/step_settings.py", *sys.argv[1:]]), figures))
    return int(bool(waiting))


if __name__ == "__main__":
    sys.exit(main())
