"""Runs one arm of claims.py on one seed: its trials, what they choose on validation, and that on the test split."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from bench.claims.arms import PLAIN, Benchmark, criteria, criterion, trial_spec
from fewshot_ray.metrics.suite import Suite
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.parameters import TunedNetwork
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.denoising import DiffusionCandidate
from fewshot_ray.trial.evaluation import Evaluator, Instruments
from fewshot_ray.trial.finished import TestSplit
from fewshot_ray.trial.trial import Trial

Moment = Literal["best", "last"]
MOMENTS: tuple[Moment, ...] = ("best", "last")
PIXEL_METRICS = ("kid", "pairwise_distance", "memorisation")


@dataclass(frozen=True)
class PixelExtractor:
    """An image's own numbers over 255: a view no network has trained in."""

    id: str = "pixels"
    weights_hash: str = "none"
    resize: str = "none"
    dimension: int | None = None

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, C H W]."""
        return images.flatten(1).float().cpu() / 255


@dataclass
class Ran:
    """A trial after training."""

    lr: float
    setting: int
    training_seed: int
    evaluations: list[dict[str, float]]
    """`step` and the validation measures, by step."""
    backbone: Backbone
    tuned: TunedNetwork
    cpu_sec: float
    """Of training, with the evaluations of the loss."""
    averages: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """The moving average of the weights at each evaluation."""

    def at(self, step: int) -> Candidate:
        """Itself with the averages of that step."""
        for name, parameter in self.tuned.trained.items():
            parameter.data.copy_(self.averages[step][name])
        self.tuned.network.eval()
        return DiffusionCandidate(self.backbone, self.tuned.network, self.tuned)

    def record(self) -> dict[str, Any]:
        """What goes into the result."""
        names = ("lr", "setting", "training_seed", "cpu_sec", "evaluations")
        return {name: getattr(self, name) for name in names}


class Judge:
    """Both views of one split's images: the benchmark's extractor and raw pixels."""

    def __init__(self, evaluator: Evaluator, samples: int) -> None:
        self.evaluator = evaluator
        self.samples = samples
        fold = evaluator.fold
        self.pixels = Suite(PIXEL_METRICS, training=fold.train.images, reference=fold.holdout.images, extractor=PixelExtractor())

    def measure(self, candidate: Candidate) -> dict[str, float]:
        """Every measure of one model, those in pixels under `<name>_pixels`."""
        measured = self.evaluator.measure(candidate, samples=self.samples)
        assert measured.samples is not None
        in_pixels = self.pixels.compute(measured.samples.cpu())
        return measured.metrics | {f"{name}_pixels": in_pixels[name] for name in PIXEL_METRICS}


def choose(trials: Sequence[Mapping[str, Any]], criterion: str, moment: Moment) -> tuple[int, int]:
    """Index and step with the lowest validation value of `criterion` (the first of equals): of all evaluations, or of the last ones."""
    values = [
        (evaluation[criterion], index, int(evaluation["step"]))
        for index, trial in enumerate(trials)
        for evaluation in (trial["evaluations"] if moment == "best" else trial["evaluations"][-1:])
    ]
    _, index, step = min(values)
    return index, step


def run_arm(benchmark: Benchmark, arm: str, seed: int, cache: str) -> dict[str, Any]:
    """Trials with their validation measures, and the test measures of what may be compared, by `index@step`.

    Plain fine-tuning is the other side at any learning rate and by either criterion, so all it may be asked for is measured, and the
    source model.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    device, folder = torch.device(benchmark.device), Folder(cache)
    spec = trial_spec(benchmark, seed, benchmark.arms[arm][0].method, benchmark.learning_rates[0], training_seed=seed, sampled=True)
    test = TestSplit(spec, folder, device)
    validation = validation_judge(test, folder, device)
    ran = [
        train(benchmark, arm, seed, setting, lr, validation, folder)
        for lr, setting in product(benchmark.learning_rates, range(len(benchmark.arms[arm])))
    ]
    judge = Judge(test.evaluator, benchmark.evaluate["final_samples"])
    measured = {name(index, step): judge.measure(ran[index].at(step)) for index, step in to_measure(arm, ran)}
    if arm == PLAIN:
        measured["source"] = judge.measure(test.materials.source_candidate())
    trials = [trial.record() for trial in ran]
    held_out = {"validation": len(validation.evaluator.fold.holdout), "test": len(test.fold.holdout)}
    return {
        "arm": arm,
        "seed": seed,
        "images": {"shots": len(test.fold.train), **held_out},
        "trials": trials,
        "test": measured,
        "cpu_sec": time.process_time() - started,
    }


def name(index: int, step: int) -> str:
    """Of a model among an arm's."""
    return f"{index}@{step}"


def to_measure(arm: str, ran: list[Ran]) -> set[tuple[int, int]]:
    """Index and step of every model that a comparison may need on the test split."""
    records = [trial.record() for trial in ran]
    if arm != PLAIN:
        return {choose(records, criterion(arm), moment) for moment in MOMENTS}
    return {(index, choose([record], by, moment)[1]) for index, record in enumerate(records) for by in criteria(arm) for moment in MOMENTS}


def validation_judge(test: TestSplit, cache: Folder, device: torch.device) -> Judge:
    """As a trial's own evaluation, with every measure."""
    config, materials = test.spec.file.evaluate, test.materials
    fold, group = materials.folds[0], Group()
    instruments = Instruments(config, channels=materials.channels, size=materials.size, device=device, cache=cache)
    own = materials.own_metrics(config, fold, instruments, group)
    evaluator = Evaluator(config, fold, instruments, own, seed=test.spec.file.seed, device=device, group=group)
    return Judge(evaluator, config.samples)


def train(benchmark: Benchmark, arm: str, seed: int, setting: int, lr: float, validation: Judge | None, cache: Folder) -> Ran:
    """One trial, measured on validation images where there is a judge of them.

    A setting's number is in its training seed, which is plain's of that number too: same batches, timesteps and noise.
    """
    training_seed = 100 * seed + setting
    method = benchmark.arms[arm][setting].method
    spec = trial_spec(benchmark, seed, method, lr, training_seed=training_seed, sampled=False)
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(spec, Folder(folder), cache, device=torch.device(benchmark.device))
        (training,) = trial.trainings
        evaluations, averages, started = [], {}, time.process_time()
        for at in trial.evaluations():
            evaluations.append({"step": at.step, **at.metrics})
            averages[at.step] = {name: average.clone() for name, average in training.ema.state().items()}
        cpu_sec = time.process_time() - started
    method_of_training: Any = training.method
    ran = Ran(lr, setting, training_seed, evaluations, method_of_training.backbone, method_of_training.tuned, cpu_sec, averages)
    for evaluation in evaluations:
        if validation is not None and ("kid" in criteria(arm) or evaluation is evaluations[-1]):
            evaluation.update(validation.measure(ran.at(int(evaluation["step"]))))
    return ran
