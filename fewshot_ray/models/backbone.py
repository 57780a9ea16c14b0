"""A diffusion network together with its schedule and the space it predicts in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.models.autoencoder import Autoencoder, Encoded
from fewshot_ray.models.schedule import NoiseSchedule, alphas_cumprod

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class Output(NamedTuple):
    """A network's output at x_t; each tensor `[B, C, H, W]` in float32."""

    prediction: Tensor
    """The prediction in the native space: of eps, v or x_0."""
    variance: Tensor | None
    """v of a learned variance, about [-1, 1] (Nichol & Dhariwal 2021, Eq. 15); None where the variance is fixed."""


class Backbone:
    """What a method sees of a diffusion model: shapes, schedule, and the algebra of its prediction space.

    The denoising loss and every distillation are taken in the network's own space ("native"), since that is the weighting it was
    pre-trained with; the methods here convert, so that training methods need not know the space, nor whether x_t is an image or a latent.
    """

    def __init__(
        self, network: ModelMixin, scheduler: Any, *, autoencoder: Autoencoder | None = None, class_names: Sequence[str] = ()
    ) -> None:
        self.network = network
        self.scheduler = scheduler
        self.autoencoder = autoencoder
        self.class_names = tuple(class_names)
        self.prediction_type = cast(PredictionType, scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise UserError(
                f"source.model: prediction_type '{self.prediction_type}' of its scheduler isn't known; "
                "epsilon, v_prediction or sample would be right"
            )
        self.schedule = NoiseSchedule(alphas_cumprod(scheduler.config))

    @property
    def channels(self) -> int:
        """C of the images."""
        return self.autoencoder.channels if self.autoencoder else int(self.network.config.in_channels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        factor = self.autoencoder.factor if self.autoencoder else 1
        return factor * self.shape[1], factor * self.shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of x_t: the images' own, or their latents'."""
        size = self.network.config.sample_size
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        return int(self.network.config.in_channels), height, width

    @property
    def learned_variance(self) -> bool:
        """Whether the network predicts a variance beside the mean."""
        return int(self.network.config.out_channels or self.network.config.in_channels) == 2 * int(self.network.config.in_channels)

    @property
    def null_label(self) -> int | None:
        """The label of the null class; None for a network without classes."""
        return int(self.network.config.num_embeds_ada_norm) if self.class_names else None

    @property
    def device(self) -> torch.device:
        """The device of the schedule, and so of all random draws."""
        return self.schedule.device

    def to(self, device: torch.device | str) -> Backbone:
        """Move network, autoencoder and schedule; returns itself."""
        self.network.to(device)
        if self.autoencoder:
            self.autoencoder.model.to(device)
        self.schedule = self.schedule.to(device)
        return self

    def copy(self, *, autoencoder: Autoencoder | None) -> Backbone:
        """A copy with a separate network, to be trained; the autoencoder, which is never trained, may be shared on the copy's device."""
        return Backbone(copy.deepcopy(self.network), self.scheduler, autoencoder=autoencoder, class_names=self.class_names)

    def encode(self, images: Tensor) -> Encoded:
        """x_0 `[B, C, H, W]` of images in [-1, 1]: the images themselves, or the distribution of their latents."""
        return self.autoencoder.encode(images) if self.autoencoder else Encoded(images, None)

    def decode(self, x_0: Tensor) -> Tensor:
        """The images of x_0, clamped to [-1, 1] (pixels are, latents never); differentiable."""
        return (self.autoencoder.decode(x_0) if self.autoencoder else x_0).clamp(-1, 1)

    def output(self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Output:
        """The output of `network` (the student, or a frozen copy) at x_t `[B, C, H, W]`, t `[B]` and labels `[B]`."""
        result: Tensor = network(x_t, t, class_labels=labels).sample.float()
        if not self.learned_variance:
            return Output(result, None)
        prediction, variance = result.chunk(2, dim=1)
        return Output(prediction, variance)

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """The prediction without the variance, `[B, C, H, W]`, in the native space."""
        return self.output(network, x_t, t, labels).prediction

    def predict_guided(self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None, scale: float) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2021): `null + scale (class - null)`; the same in every prediction space."""
        if labels is None or scale == 1:
            return self.predict(network, x_t, t, labels)
        assert self.null_label is not None
        null = torch.full_like(labels, self.null_label)
        both = self.predict(network, torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, null]))
        of_class, of_null = both.chunk(2)
        return of_null + scale * (of_class - of_null)

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The regression target: eps, x_0, or `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0` (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return eps
        if self.prediction_type == "sample":
            return x_0
        return self.schedule.signal_scale(t) * eps - self.schedule.noise_scale(t) * x_0

    def target_slope(self, t: Tensor) -> Tensor:
        """d target / d eps with x_t held, `[B, 1, 1, 1]`: converts a shift of eps into a shift of the native target."""
        signal = self.schedule.signal_scale(t)
        if self.prediction_type == "epsilon":
            return torch.ones_like(signal)
        if self.prediction_type == "sample":
            return -self.schedule.noise_scale(t) / signal
        return 1 / signal

    def to_eps(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that follows from the prediction, `[B, C, H, W]`."""
        if self.prediction_type == "epsilon":
            return prediction
        if self.prediction_type == "sample":
            return self.schedule.eps(prediction, x_t, t)
        return self.schedule.signal_scale(t) * prediction + self.schedule.noise_scale(t) * x_t

    def to_x_0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """`x_0_hat`, the image (or latent) that follows from the prediction, `[B, C, H, W]`; not clamped."""
        if self.prediction_type == "sample":
            return prediction
        signal, noise = self.schedule.signal_scale(t), self.schedule.noise_scale(t)
        if self.prediction_type == "epsilon":
            return (x_t - noise * prediction) / signal
        return signal * x_t - noise * prediction
