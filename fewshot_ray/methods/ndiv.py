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
    """The normalised distances between images of a group should be at least those between their latents."""

    least_batch = 3

    weight: Annotated[float, Field(ge=0), FloatRange(0.1, 100.0, log=True)] = 1.0
    """Weight of the loss."""
    a: float = Field(default=0.8, gt=0, le=1)
    """a: the images' normalised distance should be at least a times that of the latents."""
    latents: int = Field(default=4, ge=3)
    """N, the latents per group: each batch is split into groups, and images are compared within a group."""

    @property
    def group_size(self) -> int:
        """N: the batch is a whole number of groups of N images, which are compared with each other."""
        return self.latents


def n_div(config: NDivConfig, play: Play) -> Objective:
    """`1 / (N - 1) sum_j relu(a D^z_ij - D^x_ij)` of each image i, D the distances to the others divided by their sum."""
    d_z, d_x = (others(distances(points, config.latents)) for points in (play.z, play.fakes.image))
    d_z, d_x = d_z / d_z.sum(dim=2, keepdim=True), d_x / d_x.sum(dim=2, keepdim=True)
    loss = F.relu(config.a * d_z - d_x).mean(dim=2)
    return play.term("n_div", ungroup(loss), config.weight)


def n_div_part(config: NDivConfig) -> GanPart:
    """N-Div as a term of the generator's loss."""
    return GanPart(generator=lambda play: n_div(config, play), compares_latents=True)


@register_gan("n_div", NDivConfig)
def make_n_div(config: NDivConfig, ingredients: GanIngredients) -> GanPart:
    """N-Div's term; it needs nothing prepared."""
    return n_div_part(config)
