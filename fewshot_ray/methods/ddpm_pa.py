"""DDPM-PA: pairwise adaptation with high-frequency details (Zhu et al. 2022, "Few-shot Image Generation with Diffusion Models")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.methods.draw import Draw, mean_square
from fewshot_ray.methods.grouped import others
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.registry import Ingredients, MethodConfig, Part, register
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.spec.ranges import FloatRange


class DdpmPaConfig(MethodConfig):
    """`L_simple + lambda_image L_img + lambda_high_frequency L_hf + lambda_high_frequency_mse L_hfmse`; values within the paper's."""

    least_batch = 3  # with two images each has one other: its softmax is 1 whatever they look like

    lambda_image: Annotated[float, Field(ge=0), FloatRange(0.1, 1.0, log=True)] = 0.5
    """Weight of the relative distances between generated images (lambda_2)."""
    lambda_high_frequency: Annotated[float, Field(ge=0), FloatRange(0.1, 1.0, log=True)] = 0.5
    """Weight of the relative distances between their high-frequency components (lambda_3)."""
    lambda_high_frequency_mse: Annotated[float, Field(ge=0), FloatRange(0.01, 0.08, log=True)] = 0.05
    """Weight of the squared difference between generated and real high-frequency components (lambda_4)."""

    def check(self, backbone: Backbone) -> None:
        """Raise UserError where a side of x_0 is odd: the Haar transform halves it."""
        height, width = backbone.shape[1:]
        if height % 2 or width % 2:
            raise UserError(f"method.ddpm_pa: the model's {height}x{width} can't be halved for its wavelets; even sides would be right")


class Pairwise:
    """`L_img` and `L_hf`: `mean_i KL(p_i^adapted || p_i^source)`, p_i the softmax over j != i of the similarities of x_0_hat i and j."""

    def __init__(self, config: DdpmPaConfig, teacher: nn.Module) -> None:
        self.config = config
        self.teacher = teacher

    def compared(self, images: int) -> int:
        """All."""
        return images

    def rows(self, context: Draw) -> Mapping[str, Tensor]:
        """x_0_hat of both models at the same x_t; no gradient reaches the source's."""
        with torch.no_grad():
            prediction = context.predict_by(self.teacher, context.x_t)
            source = context.backbone.to_x_0(prediction, context.x_t, context.t)
        return {"adapted": context.x_0_hat, "source": source}

    def terms(self, rows: Mapping[str, Tensor]) -> Objective:
        """The divergences per image, `[M]`, of images and of high frequencies, each where its lambda isn't 0."""
        c, adapted, source = self.config, rows["adapted"], rows["source"]
        per_sample = {}
        if c.lambda_image > 0:
            per_sample["pairwise"] = divergence(adapted, source)
        if c.lambda_high_frequency > 0:
            per_sample["pairwise_hf"] = divergence(high_frequencies(adapted), high_frequencies(source))
        return Objective(per_sample, {"pairwise": c.lambda_image, "pairwise_hf": c.lambda_high_frequency})


def divergence(adapted: Tensor, source: Tensor) -> Tensor:
    """`KL(p_i^adapted || p_i^source)` `[M]`, from images `[M, C, H, W]` of either model."""
    log_p, log_q = log_similarities(adapted), log_similarities(source)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def log_similarities(images: Tensor) -> Tensor:
    """`log softmax_{j != i} cos(x_i, x_j)`, `[M, M - 1]`."""
    unit = F.normalize(images.flatten(1), dim=1)
    return F.log_softmax(others(unit @ unit.T), dim=1)


def high_frequencies(images: Tensor) -> Tensor:
    """`LH + HL + HH` of the Haar transform, `[b, C, H/2, W/2]`, from `[b, C, H, W]` with even sides."""
    a, b = images[..., ::2, ::2], images[..., ::2, 1::2]
    c, d = images[..., 1::2, ::2], images[..., 1::2, 1::2]
    lh, hl, hh = (c + d - a - b) / 2, (b + d - a - c) / 2, (a + d - b - c) / 2
    return lh + hl + hh


class HighFrequencyMse:
    """`L_hfmse`: the high-frequency components of x_0_hat against the training image's."""

    def __init__(self, config: DdpmPaConfig) -> None:
        self.config = config

    def __call__(self, draw: Draw) -> Objective:
        """The term `hf_mse`, `[b]`."""
        difference = high_frequencies(draw.x_0_hat) - high_frequencies(draw.x_0)
        return Objective({"hf_mse": mean_square(difference)}, {"hf_mse": self.config.lambda_high_frequency_mse})


@register("ddpm_pa", DdpmPaConfig)
def make_ddpm_pa(config: DdpmPaConfig, ingredients: Ingredients) -> Part:
    """The teacher is a copy of the source network; terms whose lambda is 0 are neither computed nor added."""
    pairwise = config.lambda_image > 0 or config.lambda_high_frequency > 0
    return Part(
        relation=Pairwise(config, ingredients.source_network()) if pairwise else None,
        regularizer=HighFrequencyMse(config) if config.lambda_high_frequency_mse > 0 else None,
    )
