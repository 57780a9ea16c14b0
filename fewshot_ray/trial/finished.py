"""Loads the models of a finished trial, and evaluates them on test images, on which nothing was selected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.limits import Counts, remarks
from fewshot_ray.metrics.protocols import unmet
from fewshot_ray.metrics.suite import METRICS, least_samples, products
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.spec.wording import show
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import read_checkpoint, saved_steps
from fewshot_ray.training.group import Group
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.evaluation import Evaluator, Instruments, Measured
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.materials import Materials


@dataclass(frozen=True)
class Finished:
    """A trained model; its network computes with the averaged weights."""

    candidate: Candidate
    fold: Fold
    """Its training and held-out images, by the images as they are now."""
    shots: tuple[str, ...]
    """Hashes of its training images, as recorded in the checkpoint; those of `fold` where none are recorded (format 1)."""


def load_finished(spec: TrialSpec, trial: Folder, step: int, *, cache: Folder, device: torch.device) -> Finished:
    """The first model of a trial's checkpoint: the only one where the trial isn't cross-fitted. Raises UserError as `load_folds`."""
    return next(load_folds(spec, trial, step, cache=cache, device=device))


def load_folds(spec: TrialSpec, trial: Folder, step: int, *, cache: Folder, device: torch.device) -> Iterator[Finished]:
    """The models in a trial's checkpoint, one per fold. Raises UserError where the checkpoint is missing or damaged."""
    if not saved_steps(trial / "checkpoints"):
        raise UserError(
            f"{trial.url}: none of its checkpoints was kept; a better trial, or a larger search.keep_checkpoints, would be right"
        )
    try:
        checkpoint = read_checkpoint(trial / "checkpoints", step)
    except ValueError as error:
        raise UserError(f"{trial.url}: {error}; another trial, or the sweep again under another name, would be right") from error
    materials = materials_of(spec, cache, device)
    _check_source(trial, checkpoint.info.get("source"), materials)
    for index, fold in enumerate(materials.folds):
        try:
            candidate = materials.saved_candidate(fold, checkpoint, f"fold{index}/")
        except (KeyError, ValueError) as error:  # their argument is the parameter's name
            raise UserError(
                f"{trial.url}: the checkpoint of step {step} is of another model ({error.args[0]} doesn't fit); "
                "the source as it was when the trial ran would be right"
            ) from error
        yield Finished(candidate, fold, _shots(checkpoint.info.get("shots"), index) or fold.train.hashes)


def _check_source(trial: Folder, source: Any, materials: Materials) -> None:
    """Raise UserError where the source model has other weights than when the trial ran: checkpoints hold only changes of those weights."""
    before = source.get("weights_hash") if isinstance(source, dict) else None
    if before is not None and before != materials.source_hash:
        raise UserError(
            f"{trial.url}: was trained from another source model than there is now (its weights' hash was {show(before)} and is "
            f"'{materials.source_hash}'); the source as it was when the trial ran would be right"
        )


def _shots(shots: Any, index: int) -> tuple[str, ...]:
    """Hashes of the fold's training images; empty where the checkpoint has none."""
    hashes = shots[index] if isinstance(shots, list) and index < len(shots) else None
    return tuple(hashes) if isinstance(hashes, list) and all(isinstance(one, str) for one in hashes) else ()


class TestSplit:
    """Evaluates models on the images of `target.test` that are neither shots nor held-out images, also not re-encoded ones.

    Where the file names none but has a folder as `target.holdout`, on that folder's, on which trials were chosen.
    """

    __test__ = False

    def __init__(self, spec: TrialSpec, cache: Folder, device: torch.device) -> None:
        self.spec = spec
        self.materials = materials_of(spec, cache, device)
        self.field, self.place = _test_place(spec)
        test = self.materials.read(self.place).distinct()
        for fold in self.materials.folds:
            test = test.without(fold.train)
            test = test if self.is_chosen_on else test.without(fold.holdout)
        if len(test) == 0:
            known = "a shot" if self.is_chosen_on else "a shot or a held-out image"
            raise UserError(f"{self.field}: every image of {self.place} is also {known}; others would be right")
        config = spec.file.evaluate.model_copy(update={"paths": spec.file.evaluate.final_paths})
        _check_test(config, self.field, shots=len(self.materials.shots), images=len(test))
        instruments = Instruments(config, channels=self.materials.channels, size=self.materials.size, device=device)
        self.fold = Fold("test", train=self.materials.shots, holdout=test)
        own = self.materials.own_metrics(config, self.fold, instruments, Group())
        source = self._source_samples if spec.file.source.pretrained else None
        self.evaluator = Evaluator(config, self.fold, instruments, own, seed=spec.file.seed, device=device, group=Group(), source=source)
        self.samples = config.final_samples
        self._drawn: torch.Tensor | None = None
        """The source model's samples, once they are drawn."""

    @property
    def is_chosen_on(self) -> bool:
        """Whether trials were chosen on these images, so that values of the chosen ones are better than on others."""
        return self.field == "target.holdout"

    def measure(self, candidate: Candidate) -> dict[str, float]:
        """The file's metrics on the test images, from `evaluate.final_samples` samples."""
        return self._measured(candidate).metrics

    def _measured(self, candidate: Candidate) -> Measured:
        measured = self.evaluator.measure(candidate, samples=self.samples)
        return replace(measured, metrics={**measured.metrics, **products(METRICS, measured.metrics)})

    def _source_samples(self, count: int) -> torch.Tensor:
        if self._drawn is None:
            self._drawn = self.evaluator.draw_samples(self.materials.source_candidate(), self.samples)
        return self._drawn[:count].cpu()

    def measure_source(self) -> dict[str, float]:
        """The same metrics of the source model."""
        measured = self._measured(self.materials.source_candidate())
        self._drawn = measured.samples
        return measured.metrics

    def remarks(self) -> list[str]:
        """Warnings of a line each on metrics that the numbers of images make meaningless, and on what the protocol demands."""
        suite, config = self.evaluator.suite, self.evaluator.config
        if suite is None:
            return []
        dimensions = {need: given["features"].shape[1] for need, given in suite.reference_outputs.items()}
        counts = Counts(self.samples, len(self.fold.holdout), len(self.fold.train), dimensions)
        extractor = None if suite.extractor is None else suite.extractor.id
        return [*remarks(config.metrics, counts), *unmet(suite.conventions, samples=self.samples, extractor=extractor)]

    def protocol(self) -> dict[str, str | int | float]:
        """Settings that the metrics depend on; they are stored with the values."""
        return self.evaluator.protocol(self.samples)


def _test_place(spec: TrialSpec) -> tuple[str, str]:
    """The field that names the images to evaluate on, and their place. Raises UserError where none does."""
    target = spec.file.target
    if target.test is not None:
        return "target.test", target.test
    if isinstance(target.holdout, str):
        return "target.holdout", target.holdout
    raise UserError(
        "target.test: not given in the sweep's file, nor a folder as target.holdout; "
        "a folder of images that nothing was selected on would be right"
    )


def _check_test(config: EvaluateSpec, field: str, *, shots: int, images: int) -> None:
    """Raise UserError where a metric needs more test images or final samples than there are."""
    for name in config.metrics:
        metric = METRICS[name]
        if images < metric.real_images:
            raise UserError(
                f"{field}: {images} images are left without shots and held-out images; {name} needs {metric.real_images}, "
                "so more would be right"
            )
        least = least_samples(name, shots)
        if config.final_samples < least:
            raise UserError(f"evaluate.final_samples: {config.final_samples} are too few for {name}; {least} or more would be right")
