"""SDFT: self-distillation for few-shot fine-tuning (Hur et al., WACV 2024; losses as in the authors' code)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fewshot_ray.methods.draw import Draw, mean_square
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.registry import Ingredients, MethodConfig, Part, register
from fewshot_ray.spec.ranges import FloatRange


class SdftConfig(MethodConfig):
    """`L_simple + lambda_distill L_distill + lambda_aux L_aux`; the defaults are the paper's for MetFaces.

    The student is in train mode, so dropout in its blocks acts in both distillations; the teacher is in eval mode.
    """

    lambda_distill: Annotated[float, Field(ge=0), FloatRange(0.01, 1.0, log=True)] = 0.1
    """Weight of the distillation on the target images' x_t."""
    gamma_distill: Annotated[float, Field(ge=0), FloatRange(0.5, 10.0, log=True)] = 3.0
    """Exponent of the distillation's weight, which falls towards low noise: `w(t) = (1 - alpha_bar_t)^gamma`."""
    lambda_aux: Annotated[float, Field(ge=0), FloatRange(0.01, 1.0, log=True)] = 0.1
    """Weight of the distillation on pure noise."""
    gamma_aux: Annotated[float, Field(ge=0), FloatRange(5.0, 150.0, log=True)] = 50.0
    """Exponent of the weight on pure noise, as `gamma_distill`; the higher of the two."""


class Sdft:
    """Distils the frozen source model's prediction on x_t and on pure noise; a learned variance is not distilled."""

    def __init__(self, config: SdftConfig, teacher: nn.Module) -> None:
        self.config = config
        self.teacher = teacher

    def __call__(self, draw: Draw) -> Objective:
        """The terms `distill` and `aux`, each left out (with its forward passes) where its lambda is 0."""
        c = self.config
        per_sample = {}
        if c.lambda_distill > 0:
            w_d = snr_weight(draw, c.gamma_distill)
            per_sample["distill"] = w_d * mean_square(self.teach(draw, draw.x_t) - draw.prediction)
        if c.lambda_aux > 0:
            # z ~ N(0, I) is the network's input as it is, with no image in it
            z = draw.normal("sdft-aux")
            w_a = snr_weight(draw, c.gamma_aux)
            per_sample["aux"] = w_a * mean_square(self.teach(draw, z) - draw.predict_by(draw.network, z))
        return Objective(per_sample, {"distill": c.lambda_distill, "aux": c.lambda_aux})

    def teach(self, draw: Draw, x_t: Tensor) -> Tensor:
        """The teacher's prediction, `[b, C, H, W]`, outside the graph."""
        with torch.no_grad():
            return draw.predict_by(self.teacher, x_t)


def snr_weight(draw: Draw, gamma: float) -> Tensor:
    """`w(t) = (1 / (1 + SNR_t))^gamma = (1 - alpha_bar_t)^gamma`, `[b]`."""
    return (1 / (1 + draw.backbone.schedule.snr(draw.t))) ** gamma


@register("sdft", SdftConfig)
def make_sdft(config: SdftConfig, ingredients: Ingredients) -> Part:
    """The teacher is a copy of the source network."""
    return Part(regularizer=Sdft(config, ingredients.source_network()))
