"""MSGAN: mode seeking (Mao et al., CVPR 2019)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field

from fewshot_ray.methods.gan import GanPart, Play
from fewshot_ray.methods.grouped import by_group, ungroup
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.spec.ranges import FloatRange

EPSILON = 1e-5
"""Added to the ratio, as in the authors' code."""


class MsGanConfig(MethodConfig):
    """The distance between two images should be large relative to the distance between their latents."""

    least_batch = 2

    weight: Annotated[float, Field(ge=0), FloatRange(0.1, 10.0, log=True)] = 1.0
    """Weight of the loss."""

    @property
    def group_size(self) -> int:
        """2: images are compared in pairs."""
        return 2


def ms_gan(config: MsGanConfig, play: Play) -> Objective:
    """`1 / (|x_1 - x_2| / |z_1 - z_2|)` of pairs of images, | | the mean absolute difference; both images of a pair get the pair's loss."""
    x, z = (by_group(points.flatten(1).float(), 2) for points in (play.fakes.image, play.z))
    ratio = (x[:, 0] - x[:, 1]).abs().mean(dim=1) / (z[:, 0] - z[:, 1]).abs().mean(dim=1)
    loss = 1 / (ratio + EPSILON)
    return play.term("mode_seeking", ungroup(torch.stack([loss, loss], dim=1)), config.weight)


def ms_gan_part(config: MsGanConfig) -> GanPart:
    """MSGAN as a term of the generator's loss."""
    return GanPart(generator=lambda play: ms_gan(config, play), compares_latents=True)


@register_gan("ms_gan", MsGanConfig)
def make_ms_gan(config: MsGanConfig, ingredients: GanIngredients) -> GanPart:
    """MSGAN's term; it needs nothing prepared."""
    return ms_gan_part(config)
