"""A finished trial's network, and how it does on images nothing was selected on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.parameters import TunedNetwork, tune
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import read_checkpoint, trained_weights
from fewshot_ray.training.group import Group
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.evaluation import Evaluator, Instruments
from fewshot_ray.trial.materials import Materials


@dataclass(frozen=True)
class Finished:
    """A trained model; its network computes with the averaged weights."""

    backbone: Backbone
    tuned: TunedNetwork


def load_finished(spec: TrialSpec, trial: Folder, step: int, *, cache: Folder, device: torch.device) -> Finished:
    """The model that a trial's checkpoint holds (of its first fold). Raises UserError where the checkpoint is missing or damaged."""
    materials = Materials(spec, cache, device)
    backbone = materials.student_backbone()
    fold = materials.folds[0]
    tuned = tune(backbone.unet, spec.params, spec.params_config, seed=derived_seed(spec.seed, "params", fold.name))
    try:
        weights = trained_weights(read_checkpoint(trial / "checkpoints", step), "fold0/")
    except ValueError as error:
        raise UserError(f"{trial.url}: {error}; run the sweep again under another name") from error
    for name, parameter in tuned.trained.items():
        parameter.data.copy_(weights[name])
    tuned.network.eval()
    return Finished(backbone, tuned)


class TestSplit:
    """Measures models on `target.test`, freed of the shots and of what candidates were judged on."""

    __test__ = False

    def __init__(self, spec: TrialSpec, cache: Folder, device: torch.device) -> None:
        place = spec.file.target.test
        if place is None:
            raise UserError("target.test: not given in the sweep's file; a folder of images that nothing was selected on would be right")
        self.spec = spec
        self.materials = Materials(spec, cache, device)
        test = self.materials.read(place).distinct()
        for fold in self.materials.folds:
            test = test.without(fold.train).without(fold.holdout)
        if len(test) == 0:
            raise UserError(f"target.test: every image of {place} was trained on or judged by; others would be right")
        config = spec.file.evaluate
        instruments = Instruments(config, self.materials.source_backbone, device)
        fold = Fold("test", train=self.materials.shots, holdout=test)
        self.evaluator = Evaluator(config, fold, instruments, seed=spec.file.seed, device=device, group=Group())
        self.samples = config.final_samples

    def measure(self, backbone: Backbone, network: nn.Module) -> dict[str, float]:
        """The file's metrics on the test images, from `evaluate.final_samples` samples."""
        return self.evaluator.measure(backbone, network, samples=self.samples).metrics

    def measure_source(self) -> dict[str, float]:
        """Of the source model, untouched."""
        backbone = self.materials.student_backbone()
        return self.measure(backbone, backbone.unet)

    def protocol(self) -> dict[str, str | int | float]:
        """The stamp of the values."""
        return self.evaluator.protocol(self.samples)
