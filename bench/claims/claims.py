"""Do the methods' claims hold? Each beside plain fine-tuning, at a matched and at a tuned learning rate, in paired differences by seed.

python bench/claims/claims.py [--benchmark digits|emoji|stylegan2|fastgan|gans-emoji] [--seeds 5] [--processes 2]
                       [--kept FOLDER] [--only METHOD] [--quick]

Writes docs/claims.md, whose "Protocol" says what is compared with what, and results/claims.json (claims-<benchmark>.json).
With --kept every arm's result is kept in FOLDER as it ends, and what is there already is not run again: it must be this code's.
With --only (one method; not for GANs) or --quick (2 seeds, 1 learning rate, few steps) the page is printed and nothing is written.
`stylegan2`, `fastgan` (on digits) and `gans-emoji` (both) are MixDL beside the same GAN without it. The emoji need a GPU and the folder
that bench/data/make_emoji.py writes; `emoji` also the model of sweeps/pretrain-emoji.yaml in it, as `ddpm`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from bench.claims import kept as kept_results
from bench.claims.arms import BENCHMARKS, PLAIN, Benchmark, trial_spec
from bench.claims.comparisons import comparisons, levels, relative_cost, settings_table, winners
from bench.claims.gans import GAN_BENCHMARKS, GanBenchmark, quick_gans, run_gans
from bench.claims.page import arms_in_words, page
from bench.claims.trials import run_arm
from bench.machine import RESULTS, machine, write_result

PAGE = Path(__file__).resolve().parents[2] / "docs" / "claims.md"
LEAST_SEEDS = 2
EXTRACTORS = {"digits": "the bundled digit network", "emoji": "Inception-V3"}
NOTES = {
    "digits": "ANT's noise keeps the moments it was drawn with, since the paper's norm is destructive below 32x32 pixels.",
    "emoji": "they are untried on these images.",
}


def run(benchmark: Benchmark, seeds: int, processes: int, arms: Sequence[str], kept: Path | None) -> dict[str, Any]:
    """All trials (those in `kept` are read), and everything the page shows but machine and command."""
    started = time.perf_counter()
    by_seed = kept_results.by_seed(run_arm, benchmark, (PLAIN, *arms), seeds, processes, kept)
    finished = [one for records in by_seed for one in records.values()]
    return {
        "benchmark": benchmark.name,
        "seeds": seeds,
        "processes": processes,
        "trials": sum(len(one["trials"]) for one in finished),
        "wall_sec": time.perf_counter() - started,
        "cpu_sec": sum(one["cpu_sec"] for one in finished) + time.process_time(),
        "protocol": protocol(benchmark, by_seed[0]),
        "arms": arms_in_words(benchmark, arms),
        "levels": levels(by_seed),
        "comparisons": comparisons(by_seed, arms),
        "settings": settings_table(by_seed, benchmark, arms),
        "winners": winners(by_seed, arms),
        "relative_cost": relative_cost(by_seed, arms),
        "by_seed": [{arm: {key: one[key] for key in ("cpu_sec", "test")} for arm, one in records.items()} for records in by_seed],
    }


def protocol(benchmark: Benchmark, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The numbers of the page's "Protocol"."""
    file = trial_spec(benchmark, 0, {"finetune": {}}, benchmark.learning_rates[0], training_seed=0, sampled=True).file
    return {
        "images": records[PLAIN]["images"],
        "trials_an_arm": benchmark.trials,
        "learning_rates": list(benchmark.learning_rates),
        "settings_an_arm": len(benchmark.arms[PLAIN]),
        "steps": file.train.steps,
        "batch_size": file.train.batch_size,
        "every": file.evaluate.every,
        "final_samples": file.evaluate.final_samples,
        "sampler": file.evaluate.sampler,
        "sampler_steps": file.evaluate.sampler_steps,
        "extractor": EXTRACTORS[benchmark.name],
        "note": NOTES[benchmark.name],
    }


def quick(benchmark: Benchmark) -> Benchmark:
    """One learning rate and few steps: whether it runs, not what it finds."""
    return replace(
        benchmark,
        train={**benchmark.train, "steps": 4, "batch_size": 8},
        evaluate={**benchmark.evaluate, "every": 2, "samples": 24, "final_samples": 24, "sampler_steps": 4},
        learning_rates=benchmark.learning_rates[1:2],
    )


def stored() -> dict[str, Any]:
    """The results there are, by benchmark."""
    paths = {name: RESULTS / f"{result_name(name)}.json" for name in (*BENCHMARKS, "biased", *GAN_BENCHMARKS)}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def result_name(benchmark: str) -> str:
    """Of the file in results/."""
    return "claims" if benchmark == "digits" else f"claims-{benchmark}"


def main() -> None:
    """Run, and write the page and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=[*BENCHMARKS, *GAN_BENCHMARKS], default="digits")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", metavar="METHOD")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kept", metavar="FOLDER", type=Path)
    options = parser.parse_args()
    seeds = options.seeds or (LEAST_SEEDS if options.quick else 5)
    if seeds < LEAST_SEEDS:
        parser.error(f"--seeds {seeds}: an interval needs {LEAST_SEEDS} or more")
    benchmarks: dict[str, Benchmark | GanBenchmark] = {**BENCHMARKS, **GAN_BENCHMARKS}
    benchmark = benchmarks[options.benchmark]
    if benchmark.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--benchmark {benchmark.name}: needs a GPU, and PyTorch sees none here")
    arms = [arm for arm in benchmark.arms if arm != PLAIN] if isinstance(benchmark, Benchmark) else []
    if options.only not in (None, *arms):
        parser.error(f"--only {options.only}: {'one of ' + ', '.join(arms) if arms else 'leaving it out'} is right")
    if isinstance(benchmark, GanBenchmark):
        figures = run_gans(quick_gans(benchmark) if options.quick else benchmark, seeds, options.processes, options.kept)
    else:
        chosen = [options.only] if options.only else arms
        figures = run(quick(benchmark) if options.quick else benchmark, seeds, options.processes, chosen, options.kept)
    command = f"python bench/claims/claims.py --benchmark {benchmark.name} --seeds {seeds} --processes {options.processes}"
    if options.only or options.quick:
        print(page({benchmark.name: {"command": command, "machine": machine(), **figures}}))
        return
    print(write_result(result_name(benchmark.name), command, figures))
    PAGE.write_text(page(stored()))
    print(PAGE)


if __name__ == "__main__":
    main()
