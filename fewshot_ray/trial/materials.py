"""What a trial is made of: source model, images and stages, each loaded when first asked for."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import ImageSet, read_images
from fewshot_ray.data.target import Fold, choose_shots, make_folds
from fewshot_ray.errors import UserError
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.draw import frozen
from fewshot_ray.methods.randomness import Randomness, derived_seed
from fewshot_ray.methods.sadm import SadmConfig
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.models.adm import AdmConfig
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import with_class_table, without_label_dropping
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import build_backbone, convert_adm, load_backbone, weights_hash
from fewshot_ray.spec.sections import CrossFit
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import TrialSpec

SOURCE_SAMPLER_STEPS = 50


@lru_cache(maxsize=8)
def _images(place: str, size: tuple[int, int], channels: int) -> ImageSet:
    """Read once a process: a reused worker runs many trials on the same images."""
    return read_images(place, size=size, channels=channels)


@lru_cache(maxsize=2)
def _source(place: str, revision: str | None) -> tuple[Backbone, str]:
    backbone = load_backbone(place, revision)
    return backbone, source_hash(backbone)


@lru_cache(maxsize=2)
def _converted(config: AdmConfig) -> tuple[Backbone, str]:
    backbone = convert_adm(config)
    return backbone, source_hash(backbone)


def source_hash(backbone: Backbone) -> str:
    """Of the network's weights and, where there is one, the autoencoder's."""
    network = weights_hash(backbone.network)
    return network if backbone.autoencoder is None else f"{network}-{weights_hash(backbone.autoencoder.model)}"


def images_hash(images: ImageSet, backbone: Backbone) -> str:
    """Of the contents in their order and the size they were brought to."""
    text = ",".join(images.hashes) + f"@{backbone.size}x{backbone.channels}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Materials:
    """What a trial needs before training, for one device; `source_backbone` is shared and must not be trained."""

    def __init__(self, spec: TrialSpec, cache: Folder, device: torch.device) -> None:
        self.spec = spec
        self.cache = cache
        self.device = device

    @cached_property
    def source_backbone(self) -> Backbone:
        """The source network and schedule, on the CPU; one with classes has a table of the target's, each still the null class."""
        loaded = self._source[0]
        if not loaded.class_names:
            return loaded
        network = without_label_dropping(with_class_table(loaded.network, len(self.class_names)))
        return Backbone(network, loaded.scheduler, autoencoder=loaded.autoencoder, class_names=self.class_names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The target's classes, in their order; none for a model without. Raises UserError."""
        labels, conditional = self.spec.file.target.labels, bool(self._source[0].class_names)
        if conditional and labels is None:
            raise UserError(
                "target.labels: source.model is class-conditional and the target images have no labels; 'one' (a new class for all of "
                "them) or 'folders' (a class for each sub-folder) would be right"
            )
        if not conditional and labels is not None:
            raise UserError(f"target.labels: '{labels}' given, but source.model has no classes; leave it out")
        if labels == "folders":
            return tuple(sorted({class_of(name) for name in self.shots.names}))
        return ("target",) if labels == "one" else ()

    def labels(self, images: ImageSet) -> Tensor | None:
        """The class of each, `[N]`; None for a model without classes. Raises UserError for one that no shot has."""
        if not self.class_names:
            return None
        if self.spec.file.target.labels == "one":
            return torch.zeros(len(images), dtype=torch.long)
        numbers = {name: number for number, name in enumerate(self.class_names)}
        for name in images.names:
            if class_of(name) not in numbers:
                known = ", ".join(self.class_names)
                raise UserError(f"target.labels: {name} is of a class that no shot has ('{class_of(name)}'); one of {known} would be right")
        return torch.tensor([numbers[class_of(name)] for name in images.names])

    @cached_property
    def source_hash(self) -> str:
        """Of the source's weights."""
        return self._source[1]

    @cached_property
    def _source(self) -> tuple[Backbone, str]:
        source = self.spec.file.source
        if source.model is not None:
            return _source(source.model, source.revision)
        if self.spec.adm is not None:
            return _converted(self.spec.adm)
        backbone = build_backbone(source.build or {}, seed=self.spec.seed)
        return backbone, source_hash(backbone)

    def student_backbone(self) -> Backbone:
        """A copy of the source on the device, to be trained."""
        return self.source_backbone.copy(autoencoder=self._autoencoder).to(self.device)

    @cached_property
    def _autoencoder(self) -> Autoencoder | None:
        """One on the device for all students."""
        source = self._source[0].autoencoder
        return source if source is None or self.device.type == "cpu" else Autoencoder(copy.deepcopy(source.model))

    def read(self, place: str) -> ImageSet:
        """Images at the model's size and channels. Raises UserError."""
        return _images(place, self._source[0].size, self._source[0].channels)

    @cached_property
    def shots(self) -> ImageSet:
        """The images there are to train on. Raises UserError."""
        target = self.spec.file.target
        return choose_shots(self.read(target.images), target.shots, target.split_seed)

    @cached_property
    def folds(self) -> list[Fold]:
        """The trainings of this trial; a refit is one on all shots."""
        target = self.spec.file.target
        if self.spec.refit_steps is not None:
            return [self.refit_fold]
        holdout = self.read(target.holdout) if isinstance(target.holdout, str) else target.holdout
        return make_folds(self.shots, holdout, target.split_seed)

    @property
    def refit_fold(self) -> Fold:
        """All shots, nothing held out."""
        return Fold("all", train=self.shots, holdout=self.shots.select([]))

    @cached_property
    def source_images(self) -> tuple[Tensor, str]:
        """Images uint8 `[N, C, H, W]` of the source domain, given or sampled from the source model, and their hash."""
        source = self.spec.file.source
        if source.images is not None and source.images != "generated":
            images = self.read(source.images)
            return images.images, images_hash(images, self.source_backbone)
        stage = self.source_samples_stage()
        return read(stage, self.cache)["images"], stage.key

    def source_samples_stage(self) -> Stage:
        """Samples of the source model, for methods that need source images where the user has none."""
        count, seed = self.spec.file.source.generated_images, self.spec.file.seed
        steps = min(SOURCE_SAMPLER_STEPS, self.source_backbone.schedule.timesteps)
        depends_on = {
            "model": self.source_hash,
            "scheduler": hashlib.sha256(self.source_backbone.scheduler.to_json_string().encode()).hexdigest()[:16],
            "count": count,
            "seed": seed,
            "sampler": "ddim",
            "steps": steps,
            "device": self.device.type,
            "version": 1,
        }

        def compute() -> dict[str, Tensor]:
            backbone = self.student_backbone()
            generator = Randomness(derived_seed(seed, "source-samples"), self.device).generator(0, "noise")
            noise = torch.randn((count, *backbone.shape), generator=generator, device=self.device)
            labels = None if backbone.null_label is None else torch.full((count,), backbone.null_label, device=self.device)
            return {"images": sample(backbone, backbone.network, noise, sampler="ddim", steps=steps, labels=labels)}

        return Stage("source-samples", depends_on, compute)

    def build_stages(self) -> None:
        """Compute every stage this trial will read, so that the trials of a sweep only read."""
        refit = [self.refit_fold] if isinstance(self.spec.file.target.holdout, CrossFit) else []
        for fold in [*self.folds, *refit]:
            ingredients = FoldIngredients(self, fold, self.student_backbone())
            for name, config in self.spec.methods.items():
                for stage in METHODS[name].stages(config, ingredients):
                    read(stage, self.cache)


@dataclass
class FoldIngredients:
    """A fold's view of the materials; see `methods.registry.Ingredients`."""

    materials: Materials
    fold: Fold
    backbone: Backbone

    @property
    def seed(self) -> int:
        """For stages; the same in all trials of a sweep."""
        return self.materials.spec.file.seed

    def source_network(self) -> nn.Module:
        """A frozen copy of the source network on the student's device; the same for every method."""
        return self._source_network

    @cached_property
    def _source_network(self) -> nn.Module:
        return frozen(copy.deepcopy(self.materials.source_backbone.network).to(self.backbone.device))

    def source_images(self) -> tuple[Tensor, str]:
        """See `Materials.source_images`."""
        return self.materials.source_images

    def training_images(self) -> tuple[Tensor, str]:
        """This fold's, and their hash: nothing trained on a fold's held-out image is reused for it."""
        return self.fold.train.images, images_hash(self.fold.train, self.backbone)

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        return read(stage, self.materials.cache)


def class_of(name: str) -> str:
    """The sub-folder of a picture's name within its place. Raises UserError where it stands in none."""
    parent = PurePosixPath(name).parent.as_posix()
    if parent == ".":
        raise UserError(f"target.labels: {name} stands in no sub-folder, so it has no class; a sub-folder for each class would be right")
    return parent


def warnings(spec: TrialSpec, backbone: Backbone) -> list[str]:
    """What will run but is likely not what the user wants, a line each."""
    found = []
    ant = spec.methods.get("ant")
    if getattr(ant, "noise_norm", None) == "sample" and getattr(ant, "noise_steps", 0) > 0 and min(backbone.size) < 32:
        found.append(
            f"method.ant.noise_norm: 'sample' removes the mean of each image's noise, which is destructive at {min(backbone.size)} pixels; "
            "'moments' is better below 32"
        )
    sadm, steps = spec.methods.get("sadm"), spec.file.train.steps
    if isinstance(sadm, SadmConfig) and sadm.eta > 0 and sadm.psi_steps > 0 and sadm.warmup_steps >= steps:
        found.append(
            f"method.sadm.warmup_steps: {sadm.warmup_steps} is beyond train.steps ({steps}), so Psi stays frozen: structure guidance "
            "without adversarial rounds; 0 psi_steps says so on purpose"
        )
    if not spec.file.source.pretrained and spec.methods.keys() & {"sdft", "ddpm_pa"}:
        found.append("source.build: a model from scratch has nothing to teach; sdft and ddpm_pa keep the student near it")
    if getattr(ant, "guidance", 0) > 0 and "holdout_loss" in spec.file.search.objectives:
        found.append(
            "search.objectives: guidance moves ANT's optimum away from holdout_loss, so trials with less of it win; kid, against held-out "
            "images, compares them"
        )
    return found


def pick_device(gpus_per_worker: float) -> torch.device:
    """The worker's GPU where it asked for one. Raises UserError where there is none."""
    if gpus_per_worker == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(f"resources.gpus_per_worker: {gpus_per_worker:g} given, but PyTorch sees no GPU here; 0 would run on the CPU")
    return torch.device("cuda", torch.cuda.current_device())
