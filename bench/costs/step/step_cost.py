"""The time of a training step beside the sum of its parts, each timed alone in the same run, and its peak memory.

python bench/costs/step/step_cost.py [--device cuda] [--precision bf16] [--threads 1] [--repetitions 5] [--params full lora ...] [--quick]
python bench/costs/step/step_cost.py --compile [--device cuda]

Bound: how often a step runs each part (passes.py, counted by hand from the papers' losses) times that part's own time. Every
repetition times all parts and then all steps; a row's ratio is the median over repetitions of step over bound, since what slows
the machine for some seconds then slows both.
Memory: what a training holds between steps, and the most that a step adds. On a CPU every allocation of PyTorch is counted (none
of the libraries' own), on a GPU `max_memory_allocated`.
With `--compile`: steps with torch.compile beside eager ones, and how far their losses part.

Weights are random: no figure depends on their values. Exits with 1 where a figure misses its target.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own chatter; read when torch is imported

import torch

from bench.costs.step.cases import COMPILED, EACH, MORE, QUICK, SIZES, Size
from bench.costs.step.compiled import compiled_rows
from bench.costs.step.networks import inception_file
from bench.costs.step.rows import measure
from bench.costs.step.space import make_space
from bench.machine import write_result
from fewshot_ray.models.parameters import PARAMS
from fewshot_ray.spec.sections import TrainSpec

MOST_OVER_BOUND = {"cpu": 1.15, "cuda": 1.10}
MOST_ANT_MEMORY = 1.2
"""An ANT step's peak over a plain step's."""
MOST_SDFT_MEMORY = 1.01
"""SDFT's peak over a plain step's with the teacher's weights, its forward pass and the second pass's graph added."""
MOST_LOSS_DIFFERENCE = 1e-4


def run_steps(given: argparse.Namespace, device: torch.device, train: Callable[[Size], TrainSpec]) -> tuple[dict[str, Any], list[str]]:
    """All groups, and the targets they miss."""
    size = QUICK if given.quick else SIZES[device.type]
    groups = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = ("digits", None) if given.quick else ("inception", inception_file(Path(folder)))
        for name, settings in (("pixel", given.params), ("latent", [p for p in given.params if p == "full"])):
            space = make_space(name, size, device, train(size))
            for params in settings:
                cases = EACH + MORE if params == "full" else EACH
                groups.append(measure(space, params, cases, given.repetitions, encoder))
                show(groups[-1])
    return {"batch": size.batch, "noise_steps": size.noise_steps, "groups": groups}, [
        text for group in groups for text in missed(group, device.type)
    ]


def run_compiled(given: argparse.Namespace, device: torch.device, train: Callable[[Size], TrainSpec]) -> tuple[dict[str, Any], list[str]]:
    """All backbones, and the targets they miss."""
    size = SIZES["cuda"] if device.type == "cuda" else COMPILED
    rows = list(compiled_rows(size, device, train(size), given.repetitions))
    return {"batch": size.batch, "rows": rows}, [
        f"{row['space']} {row['case']}: losses part by {row['largest_loss_difference']:.2g}, at most {MOST_LOSS_DIFFERENCE} is asked"
        for row in rows
        if row["largest_loss_difference"] > MOST_LOSS_DIFFERENCE
    ]


def missed(group: Mapping[str, Any], device: str) -> Iterator[str]:
    """Targets that a group's rows miss."""
    for row in group["rows"]:
        where = f"{group['space']} {group['params']} {row['case']}"
        if row["ratio"] > MOST_OVER_BOUND[device]:
            yield f"{where}: a step takes {row['ratio']} of its parts' time, at most {MOST_OVER_BOUND[device]} is asked"
        if row["case"] == "ant" and row["peak_to_plain"] > MOST_ANT_MEMORY:
            yield f"{where}: {row['peak_to_plain']} of a plain step's memory, at most {MOST_ANT_MEMORY} is asked"
        if row.get("peak_to_bound", 0) > MOST_SDFT_MEMORY:
            yield f"{where}: {row['peak_to_bound']} of the memory that the teacher and a second pass explain, at most {MOST_SDFT_MEMORY}"


def show(group: Mapping[str, Any]) -> None:
    """A group's table."""
    print(f"\n{group['space']} {group['params']}: " + ", ".join(f"{part} {ms}" for part, ms in group["parts_ms"].items()), "(ms)")
    print(f"{'':24}{'step ms':>10}{'bound ms':>10}{'ratio':>8}{'to plain':>10}{'peak MiB':>10}{'to plain':>10}")
    for row in group["rows"]:
        times = f"{row['step_ms']:10.1f}{row['bound_ms']:10.1f}{row['ratio']:8.3f}{row['ratio_to_plain']:10.2f}"
        print(f"{row['case']:24}{times}{row['peak_mib']:10.1f}{row['peak_to_plain']:10.3f}", end="")
        print(f", {row['peak_to_bound']:.3f} of its bound" if "peak_to_bound" in row else "", flush=True)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; one less than the cores keeps other work from the figures")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--params", nargs="+", choices=list(PARAMS), default=list(PARAMS))
    parser.add_argument("--quick", action="store_true", help="tiny networks: whether it runs; no time is judged, nothing is written")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write results/step_cost*.json; 1 where a target is missed."""
    given = arguments()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    gc.freeze()  # what is imported stays: looking for garbage in it would take most of the time

    def train(size: Size) -> TrainSpec:
        return TrainSpec(batch_size=size.batch, micro_batch=size.batch, precision=given.precision, lr=1e-5)

    found, misses = (run_compiled if given.compile else run_steps)(given, device, train)
    gc.unfreeze()
    if given.quick:
        return 0
    print(*misses, sep="\n")
    marks = ["step_cost", *(["compile"] if given.compile else []), *(["cuda"] if device.type == "cuda" else [])]
    some = [] if given.params == list(PARAMS) else given.params
    name = "_".join([*marks, *(["bf16"] if given.precision == "bf16" else []), *some])
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    settings = {"gpu": gpu, "threads": given.threads, "precision": given.precision, "repetitions": given.repetitions}
    print(write_result(name, " ".join(["python", "bench/costs/step/step_cost.py", *sys.argv[1:]]), {**settings, **found, "missed": misses}))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
