"""SDFT's case: what a model keeps of what its shots lack. Each method beside plain fine-tuning at equal style.

python bench/claims/biased.py [--seeds 5] [--processes 2] [--kept FOLDER] [--only METHOD] [--quick]

Ten shots of the digits 0 to 4 in the target's style; the source model draws all ten digits in another style. Every evaluation of every
trial is measured by a network of style and one of classes: the share of samples in the target's style, and the share that is in it and of
the digits 5 to 9, which no shot shows. Training longer gains style and loses the unseen digits, so methods are compared at equal style:
for each level of style the largest unseen share (and coverage of the test split, which has all digits) of the models with at least that
style, a method's less plain fine-tuning's, which had as many trials and evaluations. Both maxima are found on the same measurements, so
what luck there is in a maximum is on both sides.

Writes bench/results/claims-biased.json and docs/claims.md. --only and --quick print alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from bench.claims import kept as kept_results
from bench.claims.arms import DIGITS, PLAIN, Benchmark, trial_spec
from bench.claims.claims import PAGE, quick, stored
from bench.claims.intervals import paired
from bench.claims.page import page
from bench.claims.trials import train
from bench.judging.style import shares
from bench.machine import machine, write_result
from fewshot_ray.metrics.manifold import manifold
from fewshot_ray.storage import Folder
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.finished import TestSplit

STYLES = (0.8, 0.9, 0.95, 0.99)
KEPT = ("unseen", "coverage")
"""What a model keeps, of which more is better."""
BIASED = replace(
    DIGITS,
    name="biased",
    parts={
        "images": "embedded://digits/biased-shots?seed={seed}",
        "holdout": "embedded://digits/biased-validation?seed={seed}",
        "test": "embedded://digits/biased-test?seed={seed}",
    },
    evaluate={**DIGITS.evaluate, "every": 24, "final_samples": 300},
)
Point = dict[str, float]


def run_arm(benchmark: Benchmark, arm: str, seed: int, cache: str) -> dict[str, Any]:
    """The style and what is kept at every evaluation of every trial; plain fine-tuning's also has the source model's."""
    torch.set_num_threads(1)
    started = time.process_time()
    folder = Folder(cache)
    spec = trial_spec(benchmark, seed, benchmark.arms[arm][0].method, benchmark.learning_rates[0], training_seed=seed, sampled=True)
    test = TestSplit(spec, folder, torch.device(benchmark.device))
    trials = []
    for lr, setting in product(benchmark.learning_rates, range(len(benchmark.arms[arm]))):
        ran = train(benchmark, arm, seed, setting, lr, None, folder)
        points = [
            {"step": at["step"], "holdout_loss": at["holdout_loss"], **measured(test, ran.at(int(at["step"])))} for at in ran.evaluations
        ]
        trials.append({"lr": lr, "setting": setting, "points": points})
    record: dict[str, Any] = {"arm": arm, "seed": seed, "trials": trials}
    if arm == PLAIN:
        record["source"] = measured(test, test.materials.source_candidate())
    return record | {"cpu_sec": time.process_time() - started}


def measured(test: TestSplit, candidate: Candidate) -> Point:
    """Style, unseen share and coverage, of `final_samples` samples."""
    samples = test.evaluator.draw_samples(candidate, test.samples).cpu()
    named = shares(samples)
    suite, extractor = test.evaluator.suite, test.evaluator.instruments.extractor
    assert suite is not None
    assert extractor is not None
    near = manifold(extractor.features(samples), suite.reference_features)
    return {"style": named.style, "unseen": named.unseen, "coverage": near.coverage}


def points(record: Mapping[str, Any]) -> list[Point]:
    """All evaluations of all trials."""
    return [point for trial in record["trials"] for point in trial["points"]]


def most_kept(record: Mapping[str, Any], what: str, style: float) -> float | None:
    """The largest value among models of at least this style; None where there are none."""
    return max((point[what] for point in points(record) if point["style"] >= style), default=None)


def chosen(record: Mapping[str, Any]) -> Point:
    """The model with the best validation loss, which sees the shots' digits only."""
    return min(points(record), key=lambda point: point["holdout_loss"])


def compared(by_seed: Sequence[Mapping[str, Any]], arm: str, what: str, style: float) -> dict[str, Any]:
    """The paired difference to plain fine-tuning over the seeds in which both reach the style."""
    pairs = [(most_kept(records[arm], what, style), most_kept(records[PLAIN], what, style)) for records in by_seed]
    both = [(method, plain) for method, plain in pairs if method is not None and plain is not None]
    if not both:
        return {"seeds": 0, "verdict": "this style isn't reached"}
    return {
        "seeds": len(both),
        "method": statistics.fmean(method for method, _ in both),
        "plain": statistics.fmean(plain for _, plain in both),
        **paired([method - plain for method, plain in both], "max"),
    }


def run(benchmark: Benchmark, seeds: int, processes: int, arms: Sequence[str], kept: Path | None) -> dict[str, Any]:
    """All trials (those in `kept` are read), and what the page shows."""
    started = time.perf_counter()
    by_seed = kept_results.by_seed(run_arm, benchmark, (PLAIN, *arms), seeds, processes, kept)
    finished = [one for records in by_seed for one in records.values()]
    plain = [records[PLAIN] for records in by_seed]
    return {
        "seeds": seeds,
        "trials": sum(len(one["trials"]) for one in finished),
        "wall_sec": time.perf_counter() - started,
        "cpu_sec": sum(one["cpu_sec"] for one in finished),
        "trials_an_arm": benchmark.trials,
        "evaluations": benchmark.train["steps"] // benchmark.evaluate["every"],
        "samples": benchmark.evaluate["final_samples"],
        "levels": {
            "source": _means([one["source"] for one in plain]),
            "chosen": _means([chosen(one) for one in plain]),
            "last": _means([point for one in plain for point in [trial["points"][-1] for trial in one["trials"]]]),
        },
        "comparisons": {arm: {what: {str(s): compared(by_seed, arm, what, s) for s in STYLES} for what in KEPT} for arm in arms},
        "by_seed": by_seed,
    }


def _means(found: Sequence[Point]) -> Point:
    return {name: statistics.fmean(one[name] for one in found) for name in ("style", *KEPT)}


def main() -> None:
    """Run, and write the page and the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", metavar="METHOD", choices=[arm for arm in BIASED.arms if arm != PLAIN])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kept", metavar="FOLDER", type=Path)
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval needs 2 or more")
    arms = [options.only] if options.only else [arm for arm in BIASED.arms if arm != PLAIN]
    figures = run(quick(BIASED) if options.quick else BIASED, options.seeds, options.processes, arms, options.kept)
    command = f"python bench/claims/biased.py --seeds {options.seeds} --processes {options.processes}"
    if options.only or options.quick:
        print(page({"biased": {"command": command, "machine": machine(), **figures}}))
        return
    print(write_result("claims-biased", command, figures))
    PAGE.write_text(page(stored()))
    print(PAGE)


if __name__ == "__main__":
    main()
