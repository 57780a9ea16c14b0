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
"""The authors' code adds it to the ratio."""


class MsGanConfig(MethodConfig):
    """Two latents' images differ as the latents do."""

    least_batch = 2

    weight: Annotated[float, Field(ge=0), FloatRange(0.1, 10.0, log=True)] = 1.0
    """Of the loss."""

    @property
    def group_size(self) -> int:
        """See `MethodConfig`."""
        return 2


def ms_gan(config: MsGanConfig, play: Play) -> Objective:
    """`1 / (|x_1 - x_2| / |z_1 - z_2|)` of pairs of images, | | the mean absolute difference; each of a pair has its loss."""
    x, z = (by_group(points.flatten(1).float(), 2) for points in (play.fakes.image, play.z))
    ratio = (x[:, 0] - x[:, 1]).abs().mean(dim=1) / (z[:, 0] - z[:, 1]).abs().mean(dim=1)
    loss = 1 / (ratio + EPSILON)
    return play.term("mode_seeking", ungroup(torch.stack([loss, loss], dim=1)), config.weight)


def ms_gan_part(config: MsGanConfig) -> GanPart:
    """A term for the generator."""
    return GanPart(generator=lambda play: ms_gan(config, play), compares_latents=True)


@register_gan("ms_gan", MsGanConfig)
def make_ms_gan(config: MsGanConfig, ingredients: GanIngredients) -> GanPart:
    """See `ms_gan_part`."""
    return ms_gan_part(config)
