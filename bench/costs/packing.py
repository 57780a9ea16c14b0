"""Two trainings on one GPU at once against one after the other, each with its part of the memory; and one whose memory runs out underway.

python bench/costs/packing.py [--device cuda] [--quick]

Ends with 1 where a training whose memory ran out didn't go on with smaller micro-batches, or has other losses than one with room, and, on a
GPU, where a capped process reserved more than its part or two at once take longer than one after the other. On a CPU nothing is capped: the
network itself refuses its batches after some steps.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from bench.costs.step.cases import EACH, QUICK, SIZES
from bench.costs.step.space import loss_of_a_step, make_space
from bench.costs.step.time_and_memory import timed
from bench.machine import write_result
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.memory import keep_to_part, measure_from_now, peak_memory

PART = 0.5
WARM_UP = 3
COMPARED_STEPS = 4
LOSSES_APART = 1e-3
"""Relative; convolutions over other batch sizes use other algorithms."""


@dataclass(frozen=True)
class Told:
    """What each process is told."""

    device: str
    quick: bool
    steps: int
    gpus: float


@dataclass(frozen=True)
class Found:
    """What a process found."""

    sec: float
    memory: dict[str, int]


def made(told: Told) -> Training:
    """A training of the pixel model."""
    torch.set_num_threads(1)
    size = QUICK if told.quick else SIZES[told.device]
    train = TrainSpec(batch_size=size.batch, micro_batch=size.batch, lr=1e-5)
    return make_space("pixel", size, torch.device(told.device), train).training(EACH[0].configs(size, None), "full")


def work(told: Told, ready: Barrier, answers: Queue[Found]) -> None:
    """One process's training: warmed up, then timed from when all are ready."""
    device = torch.device(told.device)
    keep_to_part(device, told.gpus, 0)
    training = made(told)
    for _ in range(WARM_UP):
        training.take_step()
    training.read_losses()
    measure_from_now(device)
    ready.wait()

    def steps() -> None:
        for _ in range(told.steps):
            training.take_step()

    sec, _ = timed(steps, device)
    answers.put(Found(sec, dict(peak_memory(device, alone=told.gpus >= 1))))


def together(number: int, told: Told) -> list[Found]:
    """So many processes at once."""
    context = get_context("spawn")
    ready, answers = context.Barrier(number), context.Queue()
    processes = [context.Process(target=work, args=(told, ready, answers)) for _ in range(number)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    return found


def run_out(training: Training, device: torch.device) -> None:
    """Let the memory run out from now on: on a GPU by a cap between what is kept and what a step takes, on a CPU in the network."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        kept, peak = torch.cuda.memory_reserved(device), torch.cuda.max_memory_allocated(device)
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction((kept + 0.6 * (peak - kept)) / total, device)
        return
    most = max(1, training.micro_batch // 2)

    def refuse(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("refused")

    training.method.modules()["network"].register_forward_pre_hook(refuse)


def underway(told: Told) -> dict[str, Any]:
    """A training whose memory runs out after some steps: its micro-batches, and how far its losses are from those of one with room."""
    device, losses, micro_batches = torch.device(told.device), [], []
    for out in (False, True):
        training = made(told)
        for _ in range(WARM_UP):
            training.take_step()
        training.read_losses()
        micro_batches.append(training.micro_batch)
        if out:
            run_out(training, device)
        losses.append([loss_of_a_step(training) for _ in range(COMPARED_STEPS)])
        micro_batches.append(training.micro_batch)
        del training
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    apart = max(abs(own / other - 1) for own, other in zip(losses[1], losses[0], strict=True))
    return {"micro_batch": micro_batches[-2:], "losses_apart": float(f"{apart:.2g}"), "halved": micro_batches[-1] < micro_batches[-2]}


def main() -> int:
    """Measure, print and write results/packing*.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="tiny networks: whether it runs; nothing is written")
    given = parser.parse_args()
    steps = 3 if given.quick else given.steps
    out = underway(Told(given.device, given.quick, steps, 1.0))
    print(f"memory that runs out: {out}", flush=True)
    alone = together(1, Told(given.device, given.quick, steps, 1.0))[0]
    both = together(2, Told(given.device, given.quick, steps, PART))
    gain = 2 * alone.sec / max(one.sec for one in both)
    print(f"two at once are {gain:.2f} times as fast as one after the other: {alone.sec:.2f} s each alone, {both[0].sec:.2f} s at once")
    wrong = [name for name, holds in (("didn't halve", not out["halved"]), ("losses", out["losses_apart"] > LOSSES_APART)) if holds]
    if given.device == "cuda":
        wrong += ["over its part"] * any(one.memory["gpu_peak"] > PART * one.memory["gpu_total"] for one in both)
        wrong += ["slower at once"] * (gain < 1)
    if not given.quick:
        figures = {
            "steps": steps,
            "alone": asdict(alone),
            "both": [asdict(one) for one in both],
            "gain": round(gain, 2),
            "memory_runs_out": out,
        }
        name = f"packing{'_cuda' if given.device == 'cuda' else ''}"
        print(write_result(name, " ".join(["python", "bench/costs/packing.py", *sys.argv[1:]]), figures))
    if wrong:
        print(f"wrong: {', '.join(wrong)}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
