"""DistanceGAN: pairwise distances are kept (Benaim & Wolf, NeurIPS 2017), from latents to images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from fewshot_ray.methods.gan import GanPart, Play
from fewshot_ray.methods.grouped import distances, others, ungroup
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.spec.ranges import FloatRange


class DistanceGanConfig(MethodConfig):
    """Distances between images, standardised within a group, should equal those between their latents."""

    least_batch = 3

    weight: Annotated[float, Field(ge=0), FloatRange(0.1, 100.0, log=True)] = 1.0
    """Weight of the loss."""
    latents: int = Field(default=4, ge=3)
    """N, the latents per group: each batch is split into groups, and images are compared within a group."""

    @property
    def group_size(self) -> int:
        """N: the batch is a whole number of groups of N images, which are compared with each other."""
        return self.latents


def standardised(distance: Tensor) -> Tensor:
    """Distances `[groups, N, N - 1]` scaled to mean 0 and standard deviation 1 over a group's pairs."""
    mean = distance.mean(dim=(1, 2), keepdim=True)
    return (distance - mean) / distance.std(dim=(1, 2), keepdim=True, unbiased=False).clamp(min=1e-8)


def distance_gan(config: DistanceGanConfig, play: Play) -> Objective:
    """`1 / (N - 1) sum_j |d_z(i, j) - d_x(i, j)|` of each image i, the distances standardised."""
    d_z, d_x = (standardised(others(distances(points, config.latents))) for points in (play.z, play.fakes.image))
    return play.term("distance_gan", ungroup((d_z - d_x).abs().mean(dim=2)), config.weight)


def distance_gan_part(config: DistanceGanConfig) -> GanPart:
    """DistanceGAN as a term of the generator's loss."""
    return GanPart(generator=lambda play: distance_gan(config, play), compares_latents=True)


@register_gan("distance_gan", DistanceGanConfig)
def make_distance_gan(config: DistanceGanConfig, ingredients: GanIngredients) -> GanPart:
    """DistanceGAN's term; it needs nothing prepared."""
    return distance_gan_part(config)
