"""N-Div: normalised diversification (Liu et al., CVPR 2019)."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field

from fewshot_ray.methods.gan import GanPart, Play
from fewshot_ray.methods.grouped import distances, others, ungroup
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.spec.ranges import FloatRange


class NDivConfig(MethodConfig):
    """Images are at least as far apart, among their group, as their latents are."""

    least_batch = 3

    weight: Annotated[float, Field(ge=0), FloatRange(0.1, 100.0, log=True)] = 1.0
    """Of the loss."""
    a: float = Field(default=0.8, gt=0, le=1)
    """Share of the latents' normalised distance that is asked of the images."""
    latents: int = Field(default=4, ge=3)
    """Latents that are compared with each other; the batch consists of groups of so many."""

    @property
    def group_size(self) -> int:
        """See `MethodConfig`."""
        return self.latents


def n_div(config: NDivConfig, play: Play) -> Objective:
    """`1 / (N - 1) sum_j relu(a D^z_ij - D^x_ij)` of each image i, D the distances to the others over their sum."""
    d_z, d_x = (others(distances(points, config.latents)) for points in (play.z, play.fakes.image))
    d_z, d_x = d_z / d_z.sum(dim=2, keepdim=True), d_x / d_x.sum(dim=2, keepdim=True)
    loss = F.relu(config.a * d_z - d_x).mean(dim=2)
    return play.term("n_div", ungroup(loss), config.weight)


def n_div_part(config: NDivConfig) -> GanPart:
    """A term for the generator."""
    return GanPart(generator=lambda play: n_div(config, play), compares_latents=True)


@register_gan("n_div", NDivConfig)
def make_n_div(config: NDivConfig, ingredients: GanIngredients) -> GanPart:
    """See `n_div_part`."""
    return n_div_part(config)
