"""What a trial is made of: source model, images and stages, each loaded when first asked for."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import ImageSet, read_images
from fewshot_ray.data.target import Fold, choose_shots, make_folds
from fewshot_ray.errors import UserError
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.draw import frozen
from fewshot_ray.methods.randomness import Randomness, derived_seed
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import build_backbone, load_backbone, weights_hash
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
    return backbone, weights_hash(backbone.unet)


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
        """The source network and schedule, on the CPU."""
        return self._source[0]

    @cached_property
    def source_hash(self) -> str:
        """Of the source's weights."""
        return self._source[1]

    @cached_property
    def _source(self) -> tuple[Backbone, str]:
        source = self.spec.file.source
        if source.model is not None:
            return _source(source.model, source.revision)
        backbone = build_backbone(source.build or {}, seed=self.spec.seed)
        return backbone, weights_hash(backbone.unet)

    def student_backbone(self) -> Backbone:
        """A copy of the source on the device, to be trained."""
        source = self.source_backbone
        return Backbone(copy.deepcopy(source.unet), source.scheduler).to(self.device)

    def read(self, place: str) -> ImageSet:
        """Images at the model's size and channels. Raises UserError."""
        return _images(place, self.source_backbone.size, self.source_backbone.channels)

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
            noise = torch.randn((count, backbone.channels, *backbone.size), generator=generator, device=self.device)
            return {"images": sample(backbone, backbone.unet, noise, sampler="ddim", steps=steps)}

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
        """A frozen copy of the source network on the student's device."""
        return frozen(copy.deepcopy(self.materials.source_backbone.unet).to(self.backbone.device))

    def source_images(self) -> tuple[Tensor, str]:
        """See `Materials.source_images`."""
        return self.materials.source_images

    def training_images(self) -> tuple[Tensor, str]:
        """This fold's, and their hash: nothing trained on a fold's held-out image is reused for it."""
        return self.fold.train.images, images_hash(self.fold.train, self.backbone)

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        return read(stage, self.materials.cache)


def warnings(spec: TrialSpec, backbone: Backbone) -> list[str]:
    """What will run but is likely not what the user wants, a line each."""
    found = []
    ant = spec.methods.get("ant")
    if getattr(ant, "noise_norm", None) == "sample" and getattr(ant, "noise_steps", 0) > 0 and min(backbone.size) < 32:
        found.append(
            f"method.ant.noise_norm: 'sample' removes the mean of each image's noise, which is destructive at {min(backbone.size)} pixels; "
            "'moments' is better below 32"
        )
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
