"""Evaluation of a diffusion model: its samples, and its held-out denoising loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import to_model_range
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.methods.draw import mean_square
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.metrics.suite import needed
from fewshot_ray.models.autoencoder import encode_all
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.memory import in_parts
from fewshot_ray.models.parameters import TunedNetwork
from fewshot_ray.models.pipeline import PipelineCall, pipeline_call, save_pipeline, shipped_code
from fewshot_ray.models.sampling import sample
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.spec.sections.evaluate import HOLDOUT_LOSS
from fewshot_ray.training.group import Group
from fewshot_ray.training.memory import together
from fewshot_ray.trial.candidate import Candidate, HoldoutLosses, OwnMeasured

FORWARD_IMAGES = 256
"""Images per forward pass of the held-out loss."""


class DiffusionCandidate(Candidate):
    """A network with a backbone's schedule; `tuned` has its trained parameters, None for an untrained one."""

    def __init__(self, backbone: Backbone, network: nn.Module, tuned: TunedNetwork | None = None) -> None:
        self.backbone = backbone
        self.network = network
        self.channels, self.size, self.device = backbone.channels, backbone.size, backbone.device
        self.noise_shape = backbone.shape
        self.class_names = backbone.class_names
        self.tuned = tuned

    def images(self, noise: Tensor, numbers: Sequence[int], config: EvaluateSpec) -> Tensor:
        """Draw with the sampler, steps and guidance scale of `config`."""
        return sample(
            self.backbone,
            self.network,
            noise,
            sampler=config.sampler,
            steps=config.sampler_steps,
            labels=labels_in_turn(self.backbone, numbers),
            guidance_scale=config.guidance_scale,
        )

    def save(self, folder: Path) -> str | None:
        """Write the pipeline, with LoRA and the like merged into the network's weights where that is possible."""
        assert self.tuned is not None
        network = self.tuned.merge()
        save_pipeline(self.backbone, network, folder)
        return shipped_code(network)

    def pipeline_call(self, config: EvaluateSpec) -> PipelineCall:
        """The call of the pipeline class that `save_pipeline` chooses."""
        return pipeline_call(self.backbone, sampler=config.sampler, steps=config.sampler_steps, guidance_scale=config.guidance_scale)

    def evaluations(self, config: EvaluateSpec) -> int:
        """The sampler's steps: one network evaluation each."""
        return config.sampler_steps

    @torch.no_grad()
    def forward(self, images: int) -> None:
        """One prediction at t = 0."""
        x_t = torch.zeros((images, *self.noise_shape), device=self.device)
        t = torch.zeros(images, dtype=torch.long, device=self.device)
        self.backbone.predict(self.network, x_t, t, labels_in_turn(self.backbone, range(images)))

    @torch.no_grad()
    def check_finite(self) -> None:
        """Check the output for noise at t = T - 1."""
        x_t = torch.randn((1, *self.noise_shape), generator=torch.Generator().manual_seed(0)).to(self.device)
        t = torch.full((1,), self.backbone.schedule.timesteps - 1, device=self.device)
        output = self.backbone.output(self.network, x_t, t, labels_in_turn(self.backbone, range(1)))
        if not all(part.isfinite().all() for part in output if part is not None):
            raise UserError("source.model: the network's output for noise isn't finite; undamaged weights would be right")


def labels_in_turn(backbone: Backbone, numbers: Sequence[int]) -> Tensor | None:
    """Class labels `[N]`, each image's number modulo the number of classes; None for a model without classes."""
    classes = len(backbone.class_names)
    return torch.tensor([number % classes for number in numbers], device=backbone.device) if classes else None


class HoldoutLoss:
    """The denoising loss at fixed (x_0, t, eps) of a fold's held-out images, in the backbone's own prediction space, also by noise level.

    `labels` `[N]` are those of the held-out images, for a model with classes. A latent model's x_0 is the mean of the encoder's posterior.
    `source` gives the source model's losses `[P]`; without it no metric is relative to them.
    """

    def __init__(
        self,
        config: EvaluateSpec,
        fold: Fold,
        *,
        seed: int,
        device: torch.device,
        group: Group,
        labels: Tensor | None = None,
        source: Callable[[], Tensor] | None = None,
    ) -> None:
        self.config = config
        self.fold = fold
        self.seed = seed
        self.device = device
        self.group = group
        self.labels = labels
        self._source = source
        self._latents: Tensor | None = None

    def __call__(self, candidate: Candidate) -> OwnMeasured:
        """All metrics of losses, where `evaluate.metrics` has any and images are held out."""
        assert isinstance(candidate, DiffusionCandidate)
        if "loss" not in needed(self.config.metrics) or len(self.fold.holdout) == 0:
            return OwnMeasured({})
        losses = self.losses(candidate.backbone, candidate.network, loss=self.source_losses if candidate.is_source else None)
        return OwnMeasured({HOLDOUT_LOSS: losses.mean, **losses.bands()}, losses)

    @cached_property
    def source_losses(self) -> Tensor | None:
        """The source model's losses `[P]`; None where it isn't pre-trained."""
        return None if self._source is None else self._source()

    def protocol(self) -> dict[str, str | int | float]:
        """Number of (t, eps) pairs, and the settings of sampling."""
        config = self.config
        stamp: dict[str, str | int | float] = {
            "loss_draws": config.loss_draws,
            "sampler": config.sampler,
            "sampler_steps": config.sampler_steps,
        }
        return stamp | ({"guidance_scale": config.guidance_scale} if config.guidance_scale != 1 else {})

    def losses(self, backbone: Backbone, network: nn.Module, *, loss: Tensor | None = None) -> HoldoutLosses:
        """The losses of one network, on the CPU; `loss` are those `[P]` that are known already."""
        index, t, eps = self._noisings(backbone)
        if loss is None:
            loss = self._network_losses(backbone, network, index, t, eps)
        (source,) = together(self.group, "while measuring", lambda: (self.source_losses,))
        return HoldoutLosses(loss, index.int(), t.int(), backbone.schedule.log_snr(t), source)

    def log_snr(self, backbone: Backbone) -> Tensor:
        """The logarithm of the signal-to-noise ratio of every noising, `[P]` in float64."""
        return backbone.schedule.log_snr(self._noisings(backbone)[1])

    def _network_losses(self, backbone: Backbone, network: nn.Module, index: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        x_0 = self._holdout_x_0(backbone)
        labels = None if self.labels is None else self.labels.to(self.device)[index]
        own = self.group.own(torch.arange(len(index)))

        def of(rows: Tensor) -> Tensor:
            given = None if labels is None else labels[rows]
            return self._denoising_losses(backbone, network, x_0[index[rows]], t[rows], eps[rows], given)

        def of_own() -> Tensor:
            if len(own) == 0:  # more workers than pairs, and networks refuse empty input
                return torch.empty(0, device=self.device)
            return torch.cat(in_parts(of, own, FORWARD_IMAGES))

        return self.group.gather_rows(together(self.group, "while measuring", of_own), len(index)).cpu()

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
        """Image index, t (stratified over [0, T)) and eps of every pair; each image has the same number of pairs."""
        images = len(self.fold.holdout)
        count = images * math.ceil(self.config.loss_draws / images)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "holdout-loss", self.fold.name))
        strata = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        t = (strata * backbone.schedule.timesteps).long().clamp(max=backbone.schedule.timesteps - 1)
        t = t[torch.randperm(count, generator=generator)]
        eps = torch.randn((count, *backbone.shape), generator=generator)
        return torch.arange(count) % images, t, eps
