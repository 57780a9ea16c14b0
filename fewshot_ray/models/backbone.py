"""A diffusion network together with its schedule and the space it predicts in."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.models.schedule import NoiseSchedule

PredictionType = Literal["epsilon", "v_prediction", "sample"]


class Backbone:
    """What a method sees of a diffusion model: shapes, schedule, and the algebra of its prediction space.

    The denoising loss and every distillation are taken in the network's own space ("native"), since that is the weighting it was
    pre-trained with; the helpers here translate, so that no method asks which space it is.
    """

    def __init__(self, unet: UNet2DModel, scheduler: Any) -> None:
        self.unet = unet
        self.scheduler = scheduler
        self.prediction_type = cast(PredictionType, scheduler.config.prediction_type)
        if self.prediction_type not in ("epsilon", "v_prediction", "sample"):
            raise UserError(
                f"source.model: prediction_type '{self.prediction_type}' of its scheduler isn't known; "
                "epsilon, v_prediction or sample would be right"
            )
        self.schedule = NoiseSchedule(scheduler.alphas_cumprod.clone())

    @property
    def channels(self) -> int:
        """C of the images."""
        return int(self.unet.config.in_channels)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        size = self.unet.config.sample_size
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def device(self) -> torch.device:
        """Where the schedule, and so the draws, live."""
        return self.schedule.alphas_cumprod.device

    def to(self, device: torch.device | str) -> Backbone:
        """Move network and schedule; returns itself."""
        self.unet.to(device)
        self.schedule = NoiseSchedule(self.schedule.alphas_cumprod.to(device))
        return self

    def predict(self, network: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """`network`'s output in float32, `[B, C, H, W]`, in the native space; `network` is the student, or a frozen copy."""
        output: Tensor = network(x_t, t, class_labels=labels).sample
        return output.float()

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should have said: eps, x_0, or `v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0` (Salimans & Ho 2022)."""
        if self.prediction_type == "epsilon":
            return eps
        if self.prediction_type == "sample":
            return x_0
        alpha_bar = self.schedule.alpha_bar(t)
        return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0

    def target_slope(self, t: Tensor) -> Tensor:
        """d target / d eps with x_t held, `[B, 1, 1, 1]`: turns a shift stated for eps into one of the native target."""
        alpha_bar = self.schedule.alpha_bar(t)
        if self.prediction_type == "epsilon":
            return torch.ones_like(alpha_bar)
        if self.prediction_type == "sample":
            return -((1 - alpha_bar) / alpha_bar).sqrt()
        return 1 / alpha_bar.sqrt()

    def to_eps(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise the prediction stands for, `[B, C, H, W]`."""
        if self.prediction_type == "epsilon":
            return prediction
        alpha_bar = self.schedule.alpha_bar(t)
        if self.prediction_type == "sample":
            return (x_t - alpha_bar.sqrt() * prediction) / (1 - alpha_bar).sqrt()
        return alpha_bar.sqrt() * prediction + (1 - alpha_bar).sqrt() * x_t

    def to_x_0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The image the prediction stands for (`x_0_hat`), `[B, C, H, W]`; not clamped."""
        if self.prediction_type == "sample":
            return prediction
        alpha_bar = self.schedule.alpha_bar(t)
        if self.prediction_type == "epsilon":
            return (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()
        return alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction
