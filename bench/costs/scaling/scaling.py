"""How training scales with workers: measured with up to 4 on this machine, on paper for the papers' files up to 512 GPUs.

python bench/costs/scaling/scaling.py [--rounds 5] [--steps 2] [--tflops-bf16 100] [--tflops-fp32 40] [--node-gb-per-sec 300]
    [--network-gb-per-sec 12.5] [--gpus-per-node 8] [--node-latency-us 5] [--network-latency-us 20] [--quick]

Measured: the training loop with 1, 2 and 4 gloo workers over the loopback, one thread each, as many images on every worker. With more
workers than cores they take turns, so efficiency stands also beside what the cores allow, t(1) * ceil(n / cores) / t(n). Rounds of all
numbers of workers take turns; a figure is the median of the rounds, an efficiency that of the rounds' own ratios. The share of a step
within the collectives has the wait for the slowest worker in it; beside it stands the same reduction alone.

On paper (model.py): computation, then the collectives, none of which overlap in the loop; what a step computes and sends is
counted in the real loop (presets.py). A GPU's sustained rate and the cluster's bandwidths are assumed; with a GPU the step's time
is measured on it instead. A rate that is too high makes steps short and efficiencies low. Left out: the optimiser's and kernels' launch
time, which matters for an image or two a GPU, the copies into buckets, and stragglers.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from bench.costs.scaling.model import (
    MOST_GPUS,
    WORTHWHILE,
    Cluster,
    Work,
    breaks,
    communication_sec,
    fixed_batch_efficiency,
    weak_efficiency,
)
from bench.costs.scaling.presets import PRESETS, Step, counted_step, documents, measured_step_sec
from bench.costs.step.cases import EACH, QUICK, SIZES, Size
from bench.costs.step.space import make_space
from bench.machine import write_result
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training

WORKERS = (1, 2, 4)
GPUS = (8, 64, 512)
PARAMS = ("full", "adaptor")
"""Much and little to reduce."""
ANSWER_SEC = 600


class Timed(Group):
    """Notes the time within the reductions, and their bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds, self.bytes = 0.0, 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See Group."""
        started = time.perf_counter()
        super().sum_(tensors)
        self.seconds += time.perf_counter() - started
        self.bytes += sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True)
class Turn:
    """What all workers are asked for at once."""

    workers: int
    params: str
    steps: int
    meeting: str
    """The file through which this turn's workers find each other."""


def worker(rank: int, pipe: Connection, size: Size) -> None:
    """A process that takes its part in turns until it is told None."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trainings: dict[tuple[int, str], Training] = {}
    while (turn := pipe.recv()) is not None:
        if turn.workers > 1:
            patience = timedelta(seconds=ANSWER_SEC)
            dist.init_process_group("gloo", init_method=f"file://{turn.meeting}", rank=rank, world_size=turn.workers, timeout=patience)
        key = (turn.workers, turn.params)
        if key not in trainings:
            trainings[key] = weak_training(size, *key)
            trainings[key].advance(1)  # makes the optimiser's state
        pipe.send(taken(trainings[key], turn.steps))
        if turn.workers > 1:
            dist.destroy_process_group()


def weak_training(size: Size, workers: int, params: str) -> Training:
    """Plain fine-tuning with `size.batch` images on every worker."""
    batch = size.batch * workers
    train = TrainSpec(batch_size=batch, micro_batch=size.batch, lr=1e-5)
    cpu = torch.device("cpu")
    training = make_space("pixel", replace(size, batch=batch), cpu, train).training(EACH[0].configs(size, None), params)
    training.group = Timed()
    return training


def taken(training: Training, steps: int) -> dict[str, float]:
    """Seconds of a step, those of it within the reductions, its bytes, and the seconds of the same reductions alone."""
    group = training.group
    assert isinstance(group, Timed)
    group.wait_for_all(training.device)
    group.seconds, group.bytes = 0.0, 0
    started = time.perf_counter()
    for _ in range(steps):
        training.take_step()
    seconds = time.perf_counter() - started
    found = {"step": seconds / steps, "reductions": group.seconds / steps, "bytes": group.bytes / steps}
    gradients = [torch.zeros_like(parameter) for parameter in training.method.phases()[0].parameters]
    group.wait_for_all(training.device)
    started = time.perf_counter()
    group.sum_(gradients)
    return {**found, "alone": time.perf_counter() - started}


def measure(size: Size, workers: Sequence[int], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Rows by what is trained and the number of workers."""
    turns: dict[tuple[str, int], list[dict[str, float]]] = {(params, count): [] for params in PARAMS for count in workers}
    context = mp.get_context("spawn")
    pipes, processes = [], []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(max(workers)):
            here, there = context.Pipe()
            processes.append(context.Process(target=worker, args=(rank, there, size), daemon=True))
            processes[-1].start()
            pipes.append(here)
            there.close()
        for round_ in range(-1, rounds):  # the first warms up
            for (params, count), found in turns.items():
                turn = Turn(count, params, steps, str(Path(folder) / f"{params}-{count}-{round_}"))
                answers = asked(pipes[:count], turn)
                if round_ >= 0:
                    found.append({name: max(answer[name] for answer in answers) for name in answers[0]})
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join()
    return [measured_row(params, count, found, turns[params, workers[0]]) for (params, count), found in turns.items()]


def asked(pipes: Sequence[Connection], turn: Turn) -> list[dict[str, float]]:
    """The workers' answers; a worker that ends raises EOFError here."""
    for pipe in pipes:
        pipe.send(turn)
    for pipe in pipes:
        if not pipe.poll(ANSWER_SEC):
            raise TimeoutError(f"no answer from a worker within {ANSWER_SEC} s")
    return [pipe.recv() for pipe in pipes]


def measured_row(params: str, workers: int, found: Sequence[dict[str, float]], alone: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians of the rounds; `alone` are the same rounds' turns of one worker."""
    efficiency = median(one["step"] / many["step"] for one, many in zip(alone, found, strict=True))
    turns = math.ceil(workers / cores())
    return {
        "params": params,
        "workers": workers,
        "step_ms": round(1e3 * median(one["step"] for one in found), 2),
        "efficiency": round(efficiency, 3),
        "efficiency_of_the_cores": round(efficiency * turns, 3),
        "communication_share": round(median(one["reductions"] / one["step"] for one in found), 4),
        "reduction_alone_ms": round(1e3 * median(one["alone"] for one in found), 2),
        "reduced_bytes": round(found[0]["bytes"]),
    }


def cores() -> int:
    """This process may run on."""
    return len(os.sched_getaffinity(0))


def paper_row(step: Step, step_sec: float, step_from: str, cluster: Cluster) -> dict[str, Any]:
    """A file on the cluster, by the model."""
    work = Work(step_sec / step.images, step.sums, step.gathers)

    def weak(gpus: int) -> float:
        return weak_efficiency(work, step.images, gpus, cluster)

    def fixed(gpus: int) -> float:
        return fixed_batch_efficiency(work, step.batch, gpus, cluster) if gpus <= step.most_workers else 0.0

    return {
        "preset": step.preset,
        "methods": step.methods,
        "params": step.params,
        "precision": step.precision,
        "trained_parameters": step.trained_parameters,
        "reduced_bytes": round(step.reduced_bytes),
        "tflop_per_image": round(step.flops_per_image / 1e12, 3),
        "images_per_gpu": step.images,
        "step_ms": round(1e3 * step_sec, 1),
        "step_from": step_from,
        "communication_ms": {str(gpus): round(1e3 * communication_sec(work, step.images, gpus, cluster), 2) for gpus in GPUS},
        "weak": {
            "efficiency": {str(gpus): round(weak(gpus), 3) for gpus in GPUS},
            "global_batch": {str(gpus): step.images * gpus for gpus in GPUS},
            "breaks_after": breaks(weak),
        },
        "fixed_batch": {
            "batch": step.batch,
            "most_workers": step.most_workers,
            "efficiency": {str(gpus): round(fixed(gpus), 3) if gpus <= step.most_workers else None for gpus in GPUS},
            "efficiency_at_most_workers": round(fixed(step.most_workers), 3),
            "breaks_after": breaks(fixed, step.most_workers),
        },
    }


def paper(presets: Sequence[str], cluster: Cluster, flops_per_sec: dict[str, float], repetitions: int) -> list[dict[str, Any]]:
    """A row a file and way to choose what is trained; the step's time from a GPU where there is one."""
    rows = []
    for preset in presets:
        for _, document in documents(preset):
            step = counted_step(preset, document)
            if torch.cuda.is_available():
                step_sec = measured_step_sec(document, torch.device("cuda"), repetitions)
                step_from = f"measured on {torch.cuda.get_device_name()}"
            else:
                rate = flops_per_sec[step.precision]
                step_sec = step.images * step.flops_per_image / rate
                step_from = f"counted FLOPs at an assumed {rate / 1e12:g} TFLOP/s"
            rows.append(paper_row(step, step_sec, step_from, cluster))
            show_paper(rows[-1])
    return rows


def show_measured(rows: Sequence[dict[str, Any]], images: int) -> None:
    """The measured table."""
    print(f"\nMEASURED here: gloo over the loopback, one thread a worker, {cores()} cores, {images} images on every worker")
    print(
        f"{'trained':10}{'workers':>8}{'step ms':>10}{'efficiency':>12}{'of the cores':>14}{'in collectives':>16}{'alone ms':>10}{'MB':>8}"
    )
    for row in rows:
        shares = f"{row['efficiency']:12.3f}{row['efficiency_of_the_cores']:14.3f}{100 * row['communication_share']:14.1f} %"
        size = f"{row['reduction_alone_ms']:10.1f}{row['reduced_bytes'] / 1e6:8.2f}"
        print(f"{row['params']:10}{row['workers']:8}{row['step_ms']:10.1f}{shares}{size}")
    if max(row["workers"] for row in rows) > cores():
        print(
            f"Workers beyond {cores()} share the cores: their efficiency is bounded by cores over workers, 'of the cores' leaves that out."
        )


def show_paper_heading(cluster: Cluster) -> None:
    """What is assumed, and the columns."""
    step = f"measured on {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "counted FLOPs at an assumed rate"
    rates = f"{cluster.node_bytes_per_sec / 1e9:g} GB/s within and {cluster.network_bytes_per_sec / 1e9:g} GB/s between them"
    print(f"\nON PAPER, not measured: nodes of {cluster.gpus_per_node} GPUs, {rates} (assumed); step: {step}.")
    print("weak: the file's images on every GPU, so the global batch grows and the training is another one.")
    print("fixed: the file's own global batch; beyond 'most' GPUs (powers of two) some would have no image, or no whole group of them.")
    print(f"break: the most GPUs (powers of two) with an efficiency of {WORTHWHILE:g} or more; {MOST_GPUS} is where the search ends.")
    heads = "".join(f"{f'weak {gpus}':>10}" for gpus in GPUS) + f"{'break':>8}" + "".join(f"{f'fixed {gpus}':>10}" for gpus in GPUS)
    print(f"{'file':17}{'trained':9}{'MB':>8}{'TFLOP/img':>11}{'img/GPU':>9}{'step ms':>9}{heads}{'break':>8}{'most':>6}")


def show_paper(row: dict[str, Any]) -> None:
    """A line of the table."""
    weak, fixed = row["weak"], row["fixed_batch"]
    shares = "".join(f"{weak['efficiency'][str(gpus)]:10.3f}" for gpus in GPUS) + f"{weak['breaks_after']:8}"
    own = "".join(f"{'-' if (share := fixed['efficiency'][str(gpus)]) is None else f'{share:.3f}':>10}" for gpus in GPUS)
    start = f"{row['preset']:17}{row['params']:9}{row['reduced_bytes'] / 1e6:8.2f}{row['tflop_per_image']:11.2f}{row['images_per_gpu']:9}"
    print(f"{start}{row['step_ms']:9.1f}{shares}{own}{fixed['breaks_after']:8}{fixed['most_workers']:6}", flush=True)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Cluster()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a round's turn")
    parser.add_argument("--tflops-bf16", type=float, default=100.0, help="sustained by a GPU; a third of an A100's peak of 312")
    parser.add_argument("--tflops-fp32", type=float, default=40.0, help="the same; a quarter of an A100's 156 in TF32, as convolutions run")
    parser.add_argument("--node-gb-per-sec", type=float, default=defaults.node_bytes_per_sec / 1e9, help="a GPU's, within its node")
    parser.add_argument("--network-gb-per-sec", type=float, default=defaults.network_bytes_per_sec / 1e9, help="a node's")
    parser.add_argument("--gpus-per-node", type=int, default=defaults.gpus_per_node)
    parser.add_argument("--node-latency-us", type=float, default=defaults.node_latency_sec * 1e6)
    parser.add_argument("--network-latency-us", type=float, default=defaults.network_latency_sec * 1e6)
    parser.add_argument("--quick", action="store_true", help="tiny networks and two files: whether it runs; nothing is written")
    return parser.parse_args()


def main() -> None:
    """Measure, count, print and write results/scaling.json."""
    given = arguments()
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # read by the workers
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
    size = QUICK if given.quick else SIZES["cpu"]
    measured = measure(size, WORKERS[:2] if given.quick else WORKERS, 1 if given.quick else given.rounds, given.steps)
    show_measured(measured, size.batch)
    cluster = Cluster(
        given.gpus_per_node,
        given.node_gb_per_sec * 1e9,
        given.network_gb_per_sec * 1e9,
        given.node_latency_us * 1e-6,
        given.network_latency_us * 1e-6,
    )
    show_paper_heading(cluster)
    rates = {"bf16": given.tflops_bf16 * 1e12, "fp32": given.tflops_fp32 * 1e12}
    rows = paper(("ten-images", "mixdl-fastgan") if given.quick else PRESETS, cluster, rates, given.rounds)
    if given.quick:
        return
    settings = {"cores": cores(), "threads": 1, "backend": "gloo", "rounds": given.rounds, "steps": given.steps, "images": size.batch}
    figures = {
        "measured": {**settings, "rows": measured},
        "on_paper": {"assumed": {**asdict(cluster), "flops_per_sec": rates, "overlap": False}, "worthwhile": WORTHWHILE, "rows": rows},
    }
    print(write_result("scaling", " ".join(["python", "bench/costs/scaling/scaling.py", *sys.argv[1:]]), figures))


if __name__ == "__main__":
    main()
