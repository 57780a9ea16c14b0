"""A trial's images and model, and what is made of them; everything is loaded when first used."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import ImageSet, read_images
from fewshot_ray.data.target import Fold, choose_shots, make_folds
from fewshot_ray.errors import UserError
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import CrossFit, EvaluateSpec
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import Checkpoint
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.candidate import Candidate, OwnMetrics
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.evaluation import Instruments


@lru_cache(maxsize=8)
def _images(place: str, size: tuple[int, int], channels: int) -> ImageSet:
    """The images at a place; read once per process, since a reused worker runs many trials on the same images."""
    return read_images(place, size=size, channels=channels)


def images_hash(images: ImageSet, size: tuple[int, int], channels: int) -> str:
    """Hash of the images' contents in their order, and of the size and channels they were converted to."""
    text = ",".join(images.hashes) + f"@{size}x{channels}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Materials(ABC):
    """What a trial needs before training, on one device; a subclass per family of models builds, trains and evaluates its kind."""

    def __init__(self, spec: TrialSpec, cache: Folder, device: torch.device) -> None:
        self.spec = spec
        self.cache = cache
        self.device = device

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the model's images."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the model's images."""

    @property
    @abstractmethod
    def source_hash(self) -> str:
        """Hash of the weights that training starts from."""

    @property
    def source_key(self) -> Mapping[str, Any]:
        """What the source model's images depend on besides noise and sampling, as JSON values."""
        return {"model": self.source_hash}

    @abstractmethod
    def training(self, fold: Fold, group: Group) -> Training:
        """A new training of the fold, at step 0."""

    @abstractmethod
    def candidate(self, training: Training) -> Candidate:
        """The model of a training, by its current weights."""

    @abstractmethod
    def source_candidate(self) -> Candidate:
        """The model that training starts from."""

    @abstractmethod
    def saved_candidate(self, fold: Fold, checkpoint: Checkpoint, prefix: str) -> Candidate:
        """The averaged model of a fold in a checkpoint. Raises KeyError or ValueError where the checkpoint is of another model."""

    @abstractmethod
    def own_metrics(self, config: EvaluateSpec, fold: Fold, instruments: Instruments, group: Group) -> OwnMetrics:
        """The family's metrics besides those of samples."""

    @abstractmethod
    def stages(self, fold: Fold) -> Sequence[Stage]:
        """The stages (cached computations) of the methods for a fold."""

    @abstractmethod
    def check(self, document: Document) -> None:
        """Raise UserError where model, methods and settings don't fit each other; nothing is trained."""

    @abstractmethod
    def trained_numbers(self) -> int:
        """Number of trained parameters of one fold's model, without those that methods add."""

    @abstractmethod
    def describe(self) -> str:
        """The model in one line."""

    def warnings(self) -> list[str]:
        """Warnings of one line each on settings that are valid but likely not intended."""
        return []

    def labels(self, images: ImageSet) -> Tensor | None:
        """Class labels of the images, `[N]`; None for a model without classes. Raises UserError for a class that no shot has."""
        return None

    def read(self, place: str) -> ImageSet:
        """The images at a place, in the model's size and channels. Raises UserError."""
        return _images(place, self.size, self.channels)

    def images_hash(self, images: ImageSet) -> str:
        """Hash of the images' contents and the model's size."""
        return images_hash(images, self.size, self.channels)

    @cached_property
    def shots(self) -> ImageSet:
        """All training images. Raises UserError."""
        target = self.spec.file.target
        return choose_shots(self.read(target.images), target.shots, target.split_seed)

    @cached_property
    def folds(self) -> list[Fold]:
        """The folds of this trial; a refit has a single one, with all shots."""
        target = self.spec.file.target
        if self.spec.refit_steps is not None:
            return [self.refit_fold]
        holdout = self.read(target.holdout) if isinstance(target.holdout, str) else target.holdout
        return make_folds(self.shots, holdout, target.split_seed)

    @property
    def refit_fold(self) -> Fold:
        """The fold of a refit: all shots, nothing held out."""
        return Fold("all", train=self.shots, holdout=self.shots.select([]))

    def build_stages(self) -> None:
        """Compute every stage that the sweep's trials read from the cache."""
        refit = [self.refit_fold] if isinstance(self.spec.file.target.holdout, CrossFit) else []
        for fold in [*self.folds, *refit]:
            for stage in self.stages(fold):
                read(stage, self.cache)


def load_parameters(parameters: Mapping[str, nn.Parameter], weights: Mapping[str, Tensor]) -> None:
    """Copy weights into parameters by name. Raises ValueError, with the first name that differs, where names or shapes do."""
    misfit = [n for n, p in parameters.items() if n not in weights or weights[n].shape != p.shape] or sorted(
        weights.keys() - parameters.keys()
    )
    if misfit:
        raise ValueError(misfit[0])
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])


def pick_device(gpus_per_worker: float) -> torch.device:
    """The worker's GPU if it asks for one, else the CPU. Raises UserError where there is no GPU."""
    if gpus_per_worker == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"resources.gpus_per_worker: {gpus_per_worker:g} given, but PyTorch sees no GPU here; 0 would run on the CPU")
    return torch.device("cuda", torch.cuda.current_device())
