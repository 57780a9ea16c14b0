"""Diffusion models in a trial: built, checked, trained, evaluated and restored from checkpoints."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import ImageSet, UnreadableImageError, decode
from fewshot_ray.data.places import pictures
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import frozen
from fewshot_ray.methods.randomness import Randomness, derived_seed
from fewshot_ray.methods.sadm import SadmConfig
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.metrics.noise_levels import weights
from fewshot_ray.metrics.suite import needed
from fewshot_ray.models.adm import AdmConfig
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import PIPELINE_CLASSES, with_class_table, without_label_dropping
from fewshot_ray.models.parameters import TunedNetwork, tune
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import build_backbone, convert_adm, load_backbone, weights_hash
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import EvaluateSpec, TrainSpec
from fewshot_ray.spec.sections.evaluate import BAND_METRICS
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.checkpoint import Checkpoint, trained_weights
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.compose import compose, preset_specs
from fewshot_ray.trial.denoising import DiffusionCandidate, HoldoutLoss
from fewshot_ray.trial.evaluation import Instruments
from fewshot_ray.trial.materials import Materials, load_parameters

SOURCE_SAMPLER_STEPS = 50


@lru_cache(maxsize=2)
def _source(place: str, revision: str | None) -> tuple[Backbone, str]:
    backbone = load_backbone(place, revision)
    return backbone, source_hash(backbone)


@lru_cache(maxsize=2)
def _converted(config: AdmConfig) -> tuple[Backbone, str]:
    backbone = convert_adm(config)
    return backbone, source_hash(backbone)


def source_hash(backbone: Backbone) -> str:
    """Hash of the network's weights and, for a latent model, the autoencoder's."""
    network = weights_hash(backbone.network)
    return network if backbone.autoencoder is None else f"{network}-{weights_hash(backbone.autoencoder.model)}"


class DiffusionMaterials(Materials):
    """The materials of a diffusion model. `source_backbone` is shared and must not be trained."""

    @cached_property
    def source_backbone(self) -> Backbone:
        """The source network and schedule, on the CPU; with classes, it has the target's, each starting as a copy of the null class."""
        loaded = self._source[0]
        if not loaded.class_names:
            return loaded
        network = without_label_dropping(with_class_table(loaded.network, len(self.class_names)))
        return Backbone(network, loaded.scheduler, autoencoder=loaded.autoencoder, class_names=self.class_names)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The target's classes in the order of their labels; empty for a model without classes. Raises UserError."""
        labels, conditional = self.spec.file.target.labels, bool(self._source[0].class_names)
        if conditional and labels is None:
            raise UserError(
                "target.labels: source.model is class-conditional and the target images have no labels; 'one' (a new class for all of "
                "them) or 'folders' (a class for each sub-folder) would be right"
            )
        if not conditional and labels is not None:
            raise UserError(f"target.labels: '{labels}' given, but source.model has no classes; leave it out")
        if labels == "folders":
            classes = tuple(sorted({class_of(name) for name in self.shots.names}))
            if len(classes) > PIPELINE_CLASSES:
                raise UserError(
                    f"target.labels: {len(classes)} sub-folders given, but DiTPipeline, as which the model is exported, knows "
                    f"{PIPELINE_CLASSES} classes; no more would be right"
                )
            return classes
        return ("target",) if labels == "one" else ()

    def labels(self, images: ImageSet) -> Tensor | None:
        """Class labels of the images, `[N]`; None for a model without classes. Raises UserError for a class that no shot has."""
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

    @property
    def source_hash(self) -> str:
        """Hash of the source's weights."""
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
        """The autoencoder that all students on the device share."""
        source = self._source[0].autoencoder
        return source if source is None or self.device.type == "cpu" else Autoencoder(copy.deepcopy(source.model))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images, as the source pipeline has them; a latent model's are those of the decoded images."""
        return self._source[0].size

    @property
    def channels(self) -> int:
        """Channels of the images, not of the latents."""
        return self._source[0].channels

    @cached_property
    def source_images(self) -> tuple[Tensor, str]:
        """Images uint8 `[N, C, H, W]` of the source domain, given or sampled from the source model, and their hash."""
        source = self.spec.file.source
        if source.images is not None and source.images != "generated":
            images = self.read(source.images)
            return images.images, self.images_hash(images)
        stage = self.source_samples_stage()
        return read(stage, self.cache)["images"], stage.key

    def source_samples_stage(self) -> Stage:
        """The stage that samples images from the source model, for methods that need source images where the file names none."""
        count, seed = self.spec.file.source.generated_images, self.spec.file.seed
        steps = min(SOURCE_SAMPLER_STEPS, self.source_backbone.schedule.timesteps)
        depends_on = {
            "model": self.source_hash,
            "scheduler": self._scheduler_hash,
            "count": count,
            "seed": seed,
            "sampler": "ddim",
            "steps": steps,
            "device": self.device.type,
            "version": 2,
        }

        def compute() -> dict[str, Tensor]:
            backbone = self.student_backbone()
            generator = Randomness(derived_seed(seed, "source-samples"), self.device).generator(0, "noise")
            noise = torch.randn((count, *backbone.shape), generator=generator, device=self.device)
            labels = None if backbone.null_label is None else torch.full((count,), backbone.null_label, device=self.device)
            return {"images": sample(backbone, backbone.network, noise, sampler="ddim", steps=steps, labels=labels)}

        return Stage("source-samples", depends_on, compute)

    def stages(self, fold: Fold) -> Sequence[Stage]:
        """The stages of all methods for this fold."""
        ingredients = FoldIngredients(self, fold, self.student_backbone())
        return [stage for name, config in self.spec.methods.items() for stage in METHODS[name].stages(config, ingredients)]

    def tuned(self, backbone: Backbone, fold: Fold) -> TunedNetwork:
        """The student's network with its trained parameters, as a fold's training starts."""
        spec = self.spec
        return tune(backbone.network, spec.params, spec.params_config, seed=derived_seed(spec.seed, "params", fold.name))

    def training(self, fold: Fold, group: Group) -> Training:
        """A training with a new student, its optimiser and batches; all seeds depend on the trial's seed and the fold's name."""
        spec, train = self.spec, self.spec.file.train
        backbone = self.student_backbone()
        ingredients = FoldIngredients(self, fold, backbone)
        tuned = self.tuned(backbone, fold)
        if train.compile:
            tuned.network.compile()
        parts = [METHODS[name].make(config, ingredients) for name, config in spec.methods.items()]
        optimizer = make_optimizer(list(tuned.trained.values()), train)
        method = DiffusionMethod(backbone, tuned, optimizer, parts, label_dropout=train.label_dropout)
        seed = derived_seed(spec.seed, "train", fold.name)
        batches = Batches(
            fold.train.images,
            train.batch_size,
            seed=seed,
            flip=train.flip,
            device=self.device,
            autoencoder=backbone.autoencoder,
            labels=self.labels(fold.train),
        )
        return Training(method, batches, train, seed=seed, device=self.device, group=group)

    def candidate(self, training: Training) -> DiffusionCandidate:
        """The network in training, by its current weights."""
        method = training.method
        assert isinstance(method, DiffusionMethod)
        return DiffusionCandidate(method.backbone, method.tuned.network, method.tuned)

    def source_candidate(self) -> DiffusionCandidate:
        """A copy of the source network."""
        backbone = self.student_backbone()
        source = DiffusionCandidate(backbone, backbone.network)
        source.is_source = True
        return source

    def saved_candidate(self, fold: Fold, checkpoint: Checkpoint, prefix: str) -> DiffusionCandidate:
        """A student with the averages of a checkpoint, in eval mode."""
        backbone = self.student_backbone()
        tuned = self.tuned(backbone, fold)
        load_parameters(tuned.trained, trained_weights(checkpoint, prefix))
        tuned.network.eval()
        return DiffusionCandidate(backbone, tuned.network, tuned)

    def own_metrics(self, config: EvaluateSpec, fold: Fold, instruments: Instruments, group: Group) -> HoldoutLoss:
        """The held-out denoising losses; the source's are cached where `instruments` have a cache."""
        labels = self.labels(fold.holdout)

        def source() -> Tensor:
            stage = self.source_losses_stage(config, fold)
            return (stage.compute() if instruments.cache is None else read(stage, self.cache))["loss"]

        known = source if self.spec.file.source.pretrained else None
        return HoldoutLoss(config, fold, seed=self.spec.file.seed, device=self.device, group=group, labels=labels, source=known)

    def source_losses_stage(self, config: EvaluateSpec, fold: Fold) -> Stage:
        """The stage that measures the source model's losses on a fold's held-out images, at the noisings of all trials."""
        labels = self.labels(fold.holdout)
        depends_on = {
            **self.source_key,
            "images": self.images_hash(fold.holdout),
            "labels": None if labels is None else labels.tolist(),
            "fold": fold.name,
            "seed": self.spec.file.seed,
            "loss_draws": config.loss_draws,
            "device": self.device.type,
            "version": 1,
        }

        def compute() -> dict[str, Tensor]:
            source = self.source_candidate()
            measure = HoldoutLoss(config, fold, seed=self.spec.file.seed, device=self.device, group=Group.alone(), labels=labels)
            return {"loss": measure.losses(source.backbone, source.network).loss}

        return Stage("source-losses", depends_on, compute)

    @property
    def source_key(self) -> Mapping[str, Any]:
        """The hash of its weights, its scheduler and the number of its classes."""
        return {"model": self.source_hash, "scheduler": self._scheduler_hash, "classes": len(self.class_names)}

    @cached_property
    def _scheduler_hash(self) -> str:
        return hashlib.sha256(self.source_backbone.scheduler.to_json_string().encode()).hexdigest()[:16]

    def check(self, document: Document) -> None:
        """Check forward pass, source images, guidance, sampler steps, `train.params`, labels and the methods' own demands."""
        config = self.spec.file.evaluate
        backbone = self.source_backbone
        _check_forward(backbone)
        _check_source_images(document, self)
        if config.guidance_scale != 1 and not backbone.class_names:
            raise UserError(
                f"evaluate.guidance_scale: {config.guidance_scale:g} given, but source.model has no classes to guide to; leave it out"
            )
        draws = max(config.samples, config.grid_images) > 0
        if draws and config.sampler_steps > backbone.schedule.timesteps:
            raise UserError(
                f"evaluate.sampler_steps: {config.sampler_steps} given, but the model has {backbone.schedule.timesteps} timesteps; "
                "no more would be right"
            )
        self._check_bands(config)
        _check_params(document, self)
        for fold in self.folds:
            self.labels(fold.holdout)
        for one in preset_specs(document):
            for method in one.methods.values():
                method.check(backbone)

    def _check_bands(self, config: EvaluateSpec) -> None:
        """Raise UserError where a metric by noise level is asked for, and a fold's noisings leave its band empty."""
        for name in config.metrics:
            if name not in BAND_METRICS:
                continue
            for fold in self.folds:
                loss = HoldoutLoss(config, fold, seed=self.spec.file.seed, device=self.device, group=Group.alone())
                log_snr = loss.log_snr(self.source_backbone)
                if weights(name, log_snr, torch.ones(len(log_snr))) is None:
                    raise UserError(
                        f"evaluate.metrics: {name} has none of the {len(log_snr)} noisings in its band; a larger evaluate.loss_draws would "
                        "be right, or another band where the model's timesteps have none there"
                    )

    def trained_numbers(self) -> int:
        """Number of parameters that `train.params` selects."""
        return sum(parameter.numel() for parameter in self.tuned(self.student_backbone(), self.refit_fold).trained.values())

    def describe(self) -> str:
        """Network class, image and latent shape, parameters, prediction type and number of timesteps, in one line."""
        backbone = self.source_backbone
        latents = f" as {' x '.join(map(str, backbone.shape))} latents" if backbone.autoencoder else ""
        parameters = sum(parameter.numel() for parameter in backbone.network.parameters())
        variance = ", learned variance" if backbone.learned_variance else ""
        return (
            f"{type(backbone.network).__name__}, {backbone.channels} x {backbone.size[0]} x {backbone.size[1]}{latents}, "
            f"{parameters / 1e6:.2f} M parameters, {backbone.prediction_type} prediction{variance}, T = {backbone.schedule.timesteps}"
        )

    def warnings(self) -> list[str]:
        """Warnings on settings of ANT and SADM, on sources from scratch, and on ANT with holdout_loss as objective."""
        found = []
        ant = self.spec.methods.get("ant")
        if getattr(ant, "noise_norm", None) == "sample" and getattr(ant, "noise_steps", 0) > 0 and min(self.size) < 32:
            found.append(
                f"method.ant.noise_norm: 'sample' removes the mean of each image's noise, which is destructive at {min(self.size)} pixels; "
                "'moments' is better below 32"
            )
        sadm, steps = self.spec.methods.get("sadm"), self.spec.file.train.steps
        if isinstance(sadm, SadmConfig) and sadm.eta > 0 and sadm.psi_steps > 0 and sadm.warmup_steps >= steps:
            found.append(
                f"method.sadm.warmup_steps: {sadm.warmup_steps} is beyond train.steps ({steps}), so Psi stays frozen: structure guidance "
                "without adversarial rounds; 0 psi_steps says so on purpose"
            )
        if not self.spec.file.source.pretrained and self.spec.methods.keys() & {"sdft", "ddpm_pa"}:
            found.append("source.build: a model from scratch has nothing to teach; sdft and ddpm_pa keep the student near it")
        losses = [name for name in self.spec.file.search.objectives if "loss" in needed([name])]
        if getattr(ant, "guidance", 0) > 0 and losses:
            found.append(
                f"search.objectives: guidance moves ANT's optimum away from {losses[0]}, so trials with less of it win; kid, against "
                "held-out images, compares them"
            )
        return found


def make_optimizer(parameters: list[torch.nn.Parameter], config: TrainSpec) -> torch.optim.Optimizer:
    """Fused AdamW with the settings of `train`."""
    beta_1, beta_2 = config.betas
    return torch.optim.AdamW(parameters, lr=config.lr, betas=(beta_1, beta_2), weight_decay=config.weight_decay, fused=True)


@dataclass
class FoldIngredients:
    """What methods are made from, for one fold (implements `methods.registry.Ingredients`)."""

    materials: DiffusionMaterials
    fold: Fold
    backbone: Backbone

    @property
    def seed(self) -> int:
        """The seed of stages, the same in all trials of a sweep."""
        return self.materials.spec.file.seed

    def source_network(self) -> nn.Module:
        """A frozen copy of the source network on the student's device, shared by the methods."""
        return self._source_network

    @cached_property
    def _source_network(self) -> nn.Module:
        return frozen(copy.deepcopy(self.materials.source_backbone.network).to(self.backbone.device))

    def source_images(self) -> tuple[Tensor, str]:
        """Images uint8 `[N, C, H, W]` of the source domain, and their hash."""
        return self.materials.source_images

    def training_images(self) -> tuple[Tensor, str]:
        """This fold's training images and their hash; stages depend on it, so none trained on a held-out image is reused."""
        return self.fold.train.images, self.materials.images_hash(self.fold.train)

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        return read(stage, self.materials.cache)


def class_of(name: str) -> str:
    """The class of a picture by its name: the sub-folder within its place. Raises UserError where it is in none."""
    parent = PurePosixPath(name).parent.as_posix()
    if parent == ".":
        raise UserError(f"target.labels: {name} is in no sub-folder, so it has no class; a sub-folder for each class would be right")
    return parent


@torch.no_grad()
def _check_forward(backbone: Backbone) -> None:
    """Raise UserError where the network doesn't map an image of its configuration's size and channels to one of the same shape."""
    shape = (1, *backbone.shape)
    wanted = "x".join(str(side) for side in shape[1:])
    labels = None if backbone.null_label is None else torch.zeros(1, dtype=torch.long)
    try:
        output = backbone.predict(backbone.network, torch.zeros(shape), torch.zeros(1, dtype=torch.long), labels)
    except RuntimeError as error:
        raise UserError(
            f"source.model: the network can't take the {wanted} images of its configuration ({' '.join(str(error).split())[:200]}); "
            "a sample_size that can be halved at every level would be right"
        ) from error
    if output.shape != shape:
        raise UserError(
            f"source.model: for {wanted} images the network's output is {'x'.join(map(str, output.shape[1:]))}; the same would be right"
        )


def _check_source_images(document: Document, materials: DiffusionMaterials) -> None:
    """Raise UserError where source images are needed and missing, or the first isn't readable; the others may be many, or unused."""
    source = materials.spec.file.source
    place = source.images
    if place is None or place == "generated":
        needy = [name for spec in preset_specs(document) for name, config in spec.methods.items() if config.prepares]
        if not source.pretrained and needy:
            raise UserError(
                f"source.images: method.{needy[0]} needs them, and a model from scratch can't generate any; a place would be right"
            )
        return
    first = next(pictures(place), None)
    if first is None:
        raise UserError(f"source.images: {place} holds no pictures; at least one PNG, JPEG or WebP file is right")
    try:
        decode(first)
    except UnreadableImageError as error:
        raise UserError(f"source.images: {first.name} at {place} cannot be read ({error}); whole pictures are right") from error


def _check_params(document: Document, materials: DiffusionMaterials) -> None:
    """Raise UserError where `train.params`, at any end of its ranges, doesn't fit the model."""
    tried: list[tuple[str, Any]] = []
    for tree in endpoint_trees(document.tree):
        spec = compose(replace(document, tree=tree))
        if (spec.params, spec.params_config) not in tried:
            tried.append((spec.params, spec.params_config))
            tune(materials.student_backbone().network, spec.params, spec.params_config, seed=derived_seed(spec.seed, "params"))
