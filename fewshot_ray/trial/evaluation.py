"""What a model is measured by during a trial: held-out denoising loss first, then metrics of samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import ImageSet, to_model_range
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.methods.draw import mean_square
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.metrics.extractors import Extractor, PerceptualDistance, load_extractor, load_perceptual
from fewshot_ray.metrics.suite import METRICS, Suite, needed
from fewshot_ray.models.autoencoder import encode_all
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.sampling import sample
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group

FORWARD_IMAGES = 256
"""Images in a forward pass of the held-out loss."""


@dataclass(frozen=True)
class Measured:
    """The metrics of one model, and the images they were computed from."""

    metrics: dict[str, float]
    samples: Tensor | None
    """uint8 `[N, C, H, W]`."""


def extractor_name(config: EvaluateSpec, backbone: Backbone) -> str:
    """What `extractor: auto` comes to."""
    if config.extractor != "auto":
        return config.extractor
    return "digits" if (backbone.channels, backbone.size) == (1, (8, 8)) else "inception"


class Instruments:
    """The networks that samples are seen through, loaded once for all folds."""

    def __init__(self, config: EvaluateSpec, backbone: Backbone, device: torch.device, cache: Folder | None = None) -> None:
        kinds = needed(config.metrics)
        self.device = device
        self.cache = cache
        self.extractor: Extractor | None = None
        self.perceptual: PerceptualDistance | None = None
        if "features" in kinds:
            self.extractor = load_extractor(extractor_name(config, backbone), device=device, weights=config.extractor_weights)
        if "perceptual" in kinds:
            self.perceptual = load_perceptual(device=device, weights=config.lpips_weights)

    def features(self, images: ImageSet) -> Tensor:
        """The extractor's features of real images, float32 `[N, D]`, computed once for all trials where there is a cache."""
        extractor = self.extractor
        assert extractor is not None
        depends_on = {
            "images": hashlib.sha256(",".join(images.hashes).encode()).hexdigest()[:16],
            "shape": list(images.images.shape),
            "extractor": [extractor.id, extractor.weights_hash, extractor.resize],
            "device": self.device.type,
            "version": 1,
        }
        stage = Stage("features", depends_on, lambda: {"features": extractor.features(images.images)})
        return read(stage, self.cache)["features"] if self.cache is not None else stage.compute()["features"]


class Evaluator:
    """Measures models against one fold's held-out images, always with the same (t, eps) and sampling noise.

    `labels` `[N]` are the held-out images', for a model with classes; of a latent model the loss is at the posterior's mean.

    The noise depends on `seed` alone, so that differences between trials are paired.
    """

    def __init__(
        self,
        config: EvaluateSpec,
        fold: Fold,
        instruments: Instruments,
        *,
        seed: int,
        device: torch.device,
        group: Group,
        labels: Tensor | None = None,
    ) -> None:
        self.config = config
        self.fold = fold
        self.instruments = instruments
        self.seed = seed
        self.device = device
        self.group = group
        self.labels = labels
        self._latents: Tensor | None = None

    def measure(self, backbone: Backbone, network: nn.Module, *, samples: int, grid: bool = False) -> Measured:
        """All metrics the file asks for, from `samples` generated images; with `grid`, at least as many images as the grid shows."""
        metrics: dict[str, float] = {}
        if "holdout_loss" in self.config.metrics and len(self.fold.holdout) > 0:
            metrics["holdout_loss"] = self.holdout_loss(backbone, network)
        wanted = max(samples if self.suite is not None else 0, self.config.grid_images if grid else 0)
        drawn = self.draw_samples(backbone, network, wanted) if wanted > 0 else None
        if drawn is not None and self.suite is not None:
            metrics |= self.suite.compute(drawn[:samples].cpu())
        return Measured(metrics, drawn)

    @cached_property
    def suite(self) -> Suite | None:
        """The sample metrics over this fold; None where none is asked for or nothing is held out."""
        names = [name for name in self.config.metrics if METRICS[name].needs != "loss"]
        if not names or len(self.fold.holdout) == 0:
            return None
        return Suite(
            names,
            training=self.fold.train.images,
            reference=self.fold.holdout.images,
            extractor=self.instruments.extractor,
            perceptual=self.instruments.perceptual,
            features_of=lambda images: self.instruments.features(
                self.fold.holdout if images is self.fold.holdout.images else self.fold.train
            ),
        )

    def holdout_loss(self, backbone: Backbone, network: nn.Module) -> float:
        """The mean over fixed (x_0, t, eps) of the denoising loss, in the backbone's own prediction space."""
        index, t, eps = self._noisings(backbone)
        x_0 = self._holdout_x_0(backbone)
        labels = None if self.labels is None else self.labels.to(self.device)[index]
        own = self.group.own(torch.arange(len(index)))
        parts = own.split(FORWARD_IMAGES) if len(own) > 0 else ()  # more workers than pairs, and networks refuse empty input
        losses = [
            self._denoising_losses(backbone, network, x_0[index[rows]], t[rows], eps[rows], None if labels is None else labels[rows])
            for rows in parts
        ]
        loss = torch.cat(losses) if losses else torch.empty(0, device=self.device)
        return float(self.group.gather_rows(loss, len(index)).double().mean())

    def _holdout_x_0(self, backbone: Backbone) -> Tensor:
        """The held-out images or, encoded once, their latents, `[N, C, H, W]`."""
        if backbone.autoencoder is None:
            return to_model_range(self.fold.holdout.images).to(self.device)
        if self._latents is None:
            self._latents = encode_all(backbone.autoencoder, to_model_range(self.fold.holdout.images).to(self.device)).mean
        return self._latents

    @torch.no_grad()
    def _denoising_losses(
        self, backbone: Backbone, network: nn.Module, x_0: Tensor, t: Tensor, eps: Tensor, labels: Tensor | None
    ) -> Tensor:
        t, eps = t.to(self.device), eps.to(self.device)
        x_t = backbone.schedule.add_noise(x_0, eps, t)
        return mean_square(backbone.predict(network, x_t, t, labels) - backbone.target(x_0, eps, t))

    def _noisings(self, backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
        """Image index, t (stratified over [0, T)) and eps of every pair; as many for each image."""
        images = len(self.fold.holdout)
        count = images * math.ceil(self.config.loss_draws / images)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "holdout-loss", self.fold.name))
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        t = (strata * backbone.schedule.timesteps).long().clamp(max=backbone.schedule.timesteps - 1)
        t = t[torch.randperm(count, generator=generator)]
        eps = torch.randn((count, *backbone.shape), generator=generator)
        return torch.arange(count) % images, t, eps

    def draw_samples(self, backbone: Backbone, network: nn.Module, count: int) -> Tensor:
        """Images uint8 `[count, C, H, W]` from noise that all trials and steps share; the first n of more are the same n."""
        own = self.group.own(torch.arange(count)).tolist()
        if not own:  # more workers than images, and networks refuse empty input
            return self.group.gather_rows(torch.empty((0, backbone.channels, *backbone.size), dtype=torch.uint8, device=self.device), count)
        noise = torch.stack([self._sampling_noise(backbone, index) for index in own]).to(self.device)
        images = sample(
            backbone,
            network,
            noise,
            sampler=self.config.sampler,
            steps=self.config.sampler_steps,
            labels=labels_in_turn(backbone, own),
            guidance_scale=self.config.guidance_scale,
        )
        return self.group.gather_rows(images, count)

    def _sampling_noise(self, backbone: Backbone, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "samples", index))
        return torch.randn(backbone.shape, generator=generator)

    def protocol(self, samples: int) -> dict[str, str | int | float]:
        """The stamp of every value."""
        config = self.config
        stamp: dict[str, str | int | float] = {
            "seed": self.seed,
            "loss_draws": config.loss_draws,
            "n_generated": samples,
            "sampler": config.sampler,
            "sampler_steps": config.sampler_steps,
        }
        if config.guidance_scale != 1:
            stamp["guidance_scale"] = config.guidance_scale
        return stamp | (self.suite.protocol() if self.suite is not None else {})


def labels_in_turn(backbone: Backbone, numbers: Sequence[int]) -> Tensor | None:
    """A label for each image by its number: the classes take turns; None for a model without classes."""
    classes = len(backbone.class_names)
    return torch.tensor([number % classes for number in numbers], device=backbone.device) if classes else None


def check_evaluation(config: EvaluateSpec, folds: list[Fold]) -> None:
    """Raises UserError where a metric can't be had from what is held out, or from as many samples."""
    fewest, most = min(len(fold.holdout) for fold in folds), max(len(fold.train) for fold in folds)
    for name in config.metrics:
        if fewest < METRICS[name].real_images:
            raise UserError(
                f"evaluate.metrics: {name} needs {METRICS[name].real_images} held-out images, a fold has {fewest}; "
                "a larger target.holdout, fewer folds or holdout_loss would be right"
            )
        if name.startswith("intra_") and config.samples <= most:
            raise UserError(
                f"evaluate.samples: {config.samples} are too few for {name}; more than the {most} images trained on would be right"
            )
