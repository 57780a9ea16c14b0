"""Runs the GANs' part of claims.py: each architecture from scratch on ten images, with MixDL and without."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from bench.claims.intervals import paired
from bench.claims.kept import results
from fewshot_ray.metrics.extractors import Extractor
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import TrialSpec, compose
from fewshot_ray.trial.evaluation import Instruments
from fewshot_ray.trial.finished import TestSplit, load_finished
from fewshot_ray.trial.trial import Trial

Tree = dict[str, Any]
Moment = Literal["last", "best"]
MOMENTS: tuple[Moment, ...] = ("last", "best")
ARMS: Mapping[str, Tree] = {"plain": {"finetune": {}}, "mixdl": {"mixdl": {}}}
"""Both as they come: the architecture's recipe, and MixDL's preset on top of it."""
CHOSEN_BY = "kid"
DIGIT_PIXELS = 8


@dataclass(frozen=True)
class GanMeasure:
    """A value reported on the test split."""

    name: str
    title: str
    direction: Literal["min", "max"]


MEASURES = (
    GanMeasure("path_uniformity", "deviation along paths", "min"),
    GanMeasure("modes", "modes", "max"),
    GanMeasure("pairwise_distance", "pairwise distance", "max"),
    GanMeasure("precision", "precision", "max"),
    GanMeasure("recall", "recall", "max"),
    GanMeasure("kid", "KID", "min"),
    GanMeasure("memorisation", "share memorised", "min"),
)


@dataclass(frozen=True)
class GanCase:
    """An architecture and how long it trains."""

    title: str
    source: Tree
    train: Tree
    every: int


@dataclass(frozen=True)
class GanBenchmark:
    """Images, architectures and the measures' sizes. `parts` name the seed's split with `{seed}`."""

    name: str
    title: str
    parts: Mapping[str, str]
    cases: Mapping[str, GanCase]
    evaluate: Tree
    note: str
    """What of the recipes isn't as it comes, and why."""
    chosen: str
    """How settings and length were come by, and what else was tried."""
    device: str


DIGITS = {
    "images": "embedded://digits/shots?seed={seed}",
    "holdout": "embedded://digits/validation?seed={seed}",
    "test": "embedded://digits/test?seed={seed}",
}
DIGITS_EVALUATE = {"samples": 300, "final_samples": 400, "paths": 100, "final_paths": 300, "extractor": "digits"}

STYLEGAN2 = GanBenchmark(
    name="stylegan2",
    title="StyleGAN2 from scratch: MixDL",
    parts=DIGITS,
    cases={
        "stylegan2": GanCase(
            title="Digits at 8x8",
            source={
                "stylegan2": {
                    "resolution": 8,
                    "channels": 1,
                    "latent_dim": 64,
                    "mapping_layers": 4,
                    "channel_base": 512,
                    "channel_max": 64,
                }
            },
            train={"steps": 5000, "batch_size": 16, "lr": 2.5e-3, "gan": {"r1": 0.01, "path_length": 0}},
            every=1000,
        )
    },
    evaluate=DIGITS_EVALUATE,
    note="R1 is light and path length isn't regularised, so that plain training memorises within minutes",
    chosen="the settings are the fourth that were tried, by hand and on one seed each, until plain training memorised: R1 10 and 0.05 with "
    "batches of 4, and 0.05 with 32 (all on split 0, which is among these seeds), then these (on split 100, which isn't, with MixDL "
    "beside them). With R1 10, the recipe's, plain training copied nothing in 12,000 steps and MixDL showed no gain. That the share "
    "memorised is among the claims, and that both moments must agree, was settled after this result was seen",
    device="cpu",
)

FASTGAN = GanBenchmark(
    name="fastgan",
    title="FastGAN from scratch: MixDL",
    parts=DIGITS,
    cases={
        "fastgan": GanCase(
            title="Digits enlarged to 64x64",
            source={"fastgan": {"resolution": 64, "channels": 1, "latent_dim": 64, "width": 8}},
            train={"steps": 1000, "batch_size": 8, "lr": 2e-4, "gan": {"reconstruction": "pixels", "diffaugment": None}},
            every=250,
        )
    },
    evaluate=DIGITS_EVALUATE,
    note="nothing is augmented, so that plain training memorises the sooner",
    chosen="plain training was tried for 1,500 steps with DiffAugment and without, on split 100: no copies in either. These steps are what "
    "an hour of a CPU gives; whether it memorises later is left to a GPU",
    device="cpu",
)

GANS_EMOJI = GanBenchmark(
    name="gans-emoji",
    title="GANs from scratch on colour emoji: MixDL",
    parts={"images": "emoji/shots-{seed}", "holdout": "emoji/validation-{seed}", "test": "emoji/test-{seed}"},
    cases={
        "stylegan2": GanCase(
            title="StyleGAN2, emoji at 64x64",
            source={"stylegan2": {"resolution": 64}},
            train={"steps": 10_000, "batch_size": 16},
            every=2_000,
        ),
        "fastgan": GanCase(
            title="FastGAN, emoji at 64x64",
            source={"fastgan": {"resolution": 64}},
            train={"steps": 10_000, "batch_size": 16},
            every=2_000,
        ),
    },
    evaluate={"samples": 500, "final_samples": 1000, "paths": 200, "final_paths": 1000, "extractor": "inception"},
    note="nothing is changed",
    chosen="nothing was tried before",
    device="cuda",
)

GAN_BENCHMARKS = {benchmark.name: benchmark for benchmark in (STYLEGAN2, FASTGAN, GANS_EMOJI)}


@dataclass(frozen=True)
class Shrunk:
    """The digit network's view of enlarged digits: shrunk to its own size again, by areas."""

    inner: Extractor
    size: int = DIGIT_PIXELS

    @property
    def id(self) -> str:
        """Of the network."""
        return f"{self.inner.id}-shrunk"

    @property
    def weights_hash(self) -> str:
        """Of the network."""
        return self.inner.weights_hash

    @property
    def resize(self) -> str:
        """To the network's size."""
        return f"areas to {self.size}x{self.size}"

    @property
    def dimension(self) -> int | None:
        """Of the network."""
        return self.inner.dimension

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, D]."""
        small = interpolate(images.float(), size=(self.size, self.size), mode="area")
        return self.inner.features(small.round().to(torch.uint8))


def shrink(instruments: Instruments) -> None:
    """Let the digit network see images of any size."""
    if instruments.extractor is not None and instruments.extractor.id.startswith("digit"):
        instruments.extractor = Shrunk(instruments.extractor)


def gan_spec(benchmark: GanBenchmark, case: str, arm: str, seed: int) -> TrialSpec:
    """A trial on the seed's split."""
    gan = benchmark.cases[case]
    tree = {
        "name": f"{benchmark.name}-{case}",
        "seed": seed,
        "source": {"gan": gan.source},
        "target": {key: place.format(seed=seed) for key, place in benchmark.parts.items()},
        "method": ARMS[arm],
        "train": {"flip": False, **gan.train},
        "evaluate": {**benchmark.evaluate, "every": gan.every, "grid_images": 0, "metrics": [measure.name for measure in MEASURES]},
        "search": {"objectives": {CHOSEN_BY: "min"}},
    }
    return compose(Document(tree, f"claims-{benchmark.name}"), seed=seed)


def run_gan(benchmark: GanBenchmark, case: str, arm: str, seed: int, cache: str) -> dict[str, Any]:
    """One trial, and the test measures of its last model and of the one with the best validation KID."""
    torch.set_num_threads(1)
    device, spec = torch.device(benchmark.device), gan_spec(benchmark, case, arm, seed)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(spec, Folder(folder), Folder(cache), device=device)
        shrink(trial.instruments)
        evaluations = [{"step": at.step, **at.metrics} for at in trial.evaluations()]
        steps = chosen_steps(evaluations)
        test = TestSplit(spec, Folder(cache), device)
        shrink(test.evaluator.instruments)
        # From the checkpoints, as the product reads them: with the averages go the buffers of that step.
        measured = {
            step: test.measure(load_finished(spec, trial.folder, step, cache=Folder(cache), device=device).candidate)
            for step in set(steps.values())
        }
    return {
        "case": case,
        "arm": arm,
        "seed": seed,
        "images": {"shots": len(test.fold.train), "validation": len(trial.evaluators[0].fold.holdout), "test": len(test.fold.holdout)},
        "evaluations": evaluations,
        "step": steps,
        "test": {moment: {m.name: measured[step][m.name] for m in MEASURES} for moment, step in steps.items()},
        "cpu_sec": time.process_time() - started,
    }


def chosen_steps(evaluations: Sequence[Mapping[str, float]]) -> dict[Moment, int]:
    """The last step, and the first of those with the lowest validation KID."""
    best = min(evaluations, key=lambda evaluation: evaluation[CHOSEN_BY])
    return {"last": int(evaluations[-1]["step"]), "best": int(best["step"])}


def run_gans(benchmark: GanBenchmark, seeds: int, processes: int, kept: Path | None) -> dict[str, Any]:
    """All trials (those in `kept` are read), and everything the page shows but machine and command."""
    started = time.perf_counter()
    finished: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        jobs = {
            f"{benchmark.name}-{case}-{arm}-{seed}": (benchmark, case, arm, seed, cache)
            for seed in range(seeds)
            for case in benchmark.cases
            for arm in ARMS
        }
        for one in results(run_gan, jobs, processes, kept):
            finished.append(one)
            print(f"seed {one['seed']}, {one['case']}, {one['arm']}: {one['cpu_sec']:.0f} s of CPU time", flush=True)
    return {
        "benchmark": benchmark.name,
        "seeds": seeds,
        "processes": processes,
        "wall_sec": time.perf_counter() - started,
        "cpu_sec": sum(one["cpu_sec"] for one in finished),
        "protocol": {
            "images": finished[0]["images"],
            "cases": {
                name: {"title": case.title, "source": case.source, "train": case.train, "every": case.every}
                for name, case in benchmark.cases.items()
            },
            "evaluate": benchmark.evaluate,
            "note": benchmark.note,
        },
        "levels": {case: gan_levels(finished, case) for case in benchmark.cases},
        "comparisons": {case: gan_comparison(finished, case, seeds) for case in benchmark.cases},
        "trials": sorted(finished, key=lambda one: (one["case"], one["seed"], one["arm"])),
    }


def _of(finished: Sequence[Mapping[str, Any]], case: str, arm: str) -> list[Mapping[str, Any]]:
    """One arm's trials by seed."""
    return sorted((one for one in finished if (one["case"], one["arm"]) == (case, arm)), key=lambda one: one["seed"])


def gan_levels(finished: Sequence[Mapping[str, Any]], case: str) -> dict[str, dict[str, dict[str, float]]]:
    """`{moment: {arm: {measure: mean over the seeds}}}`."""
    return {
        moment: {
            arm: {m.name: statistics.fmean(one["test"][moment][m.name] for one in _of(finished, case, arm)) for m in MEASURES}
            for arm in ARMS
        }
        for moment in MOMENTS
    }


def gan_comparison(finished: Sequence[Mapping[str, Any]], case: str, seeds: int) -> dict[str, dict[str, dict[str, Any]]]:
    """`{moment: {measure: MixDL minus plain}}`, paired by seed."""
    plain, mixdl = (_of(finished, case, arm) for arm in ARMS)
    assert len(plain) == len(mixdl) == seeds
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for moment in MOMENTS:
        found[moment] = {}
        for m in MEASURES:
            differences = [b["test"][moment][m.name] - a["test"][moment][m.name] for a, b in zip(plain, mixdl, strict=True)]
            found[moment][m.name] = paired(differences, m.direction)
    return found


def quick_gans(benchmark: GanBenchmark) -> GanBenchmark:
    """A few steps: whether it runs, not what it finds."""
    cases = {name: replace(case, train={**case.train, "steps": 4}, every=2) for name, case in benchmark.cases.items()}
    return replace(
        benchmark, cases=cases, evaluate={**benchmark.evaluate, "samples": 24, "final_samples": 24, "paths": 2, "final_paths": 2}
    )
