"""CDC: cross-domain correspondence (Ojha et al., CVPR 2021), its distance consistency."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fewshot_ray.methods.gan import GanPart, Play
from fewshot_ray.methods.grouped import others, similarities, ungroup
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.randomness import on_device
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.models.gan import Gan
from fewshot_ray.spec.ranges import FloatRange


class CdcConfig(MethodConfig):
    """Keeps the similarities between images of different latents as they are in the source generator."""

    needs_source = True
    least_batch = 3

    weight: Annotated[float, Field(ge=0), FloatRange(100.0, 10_000.0, log=True)] = 1000.0
    """Weight of the divergence, a sum over the N - 1 others: 1,000 is the paper's. The authors' code has its 1,000 on the mean over
    them, of KL(p || q): about 333 here with N = 4."""
    latents: int = Field(default=4, ge=3)
    """N, the latents per group: each batch is split into groups, and images are compared within a group."""

    @property
    def group_size(self) -> int:
        """N: the batch is a whole number of groups of N images, which are compared with each other."""
        return self.latents


class Cdc:
    """`KL(q^l || p^l)`, p and q the softmax of `sim(G^l(z_0), G^l(z_i))` of the frozen source generator and of the adapted one (Eq. 1)."""

    def __init__(self, config: CdcConfig, gan: Gan, source: Gan) -> None:
        self.config = config
        self.source = source
        self.layers = list(gan.distance_layers)

    def generator(self, play: Play) -> Objective:
        """Every latent is once the anchor of its group, at a layer l drawn for it; both generators get the same latents and noise."""
        with torch.no_grad():
            source = self.source.make(self.source.codes(play.z), play.draw.noise("G/fakes"))
        drawn, loss = play.draw.integers("G/cdc-layer", len(self.layers)), torch.zeros((), device=play.z.device)
        for index in drawn.unique().tolist():
            log_p, log_q = (self.log_softmax(made.features[self.layers[index]]) for made in (source, play.fakes))
            loss = torch.where(on_device(drawn == index, loss.device), (log_q.exp() * (log_q - log_p)).sum(dim=1), loss)
        return play.term("cdc", loss, self.config.weight)

    def log_softmax(self, features: Tensor) -> Tensor:
        """Log-softmax of each image's similarities to the others of its group, `[b, N - 1]`."""
        count = self.config.latents
        similarity = similarities(features, features, count).unflatten(0, (count, -1)).transpose(0, 1)
        return F.log_softmax(ungroup(others(similarity)), dim=1)


def cdc_part(config: CdcConfig, gan: Gan, source: Gan) -> GanPart:
    """CDC as a term of the generator's loss."""
    return GanPart(generator=Cdc(config, gan, source).generator, compares_latents=True)


@register_gan("cdc", CdcConfig)
def make_cdc(config: CdcConfig, ingredients: GanIngredients) -> GanPart:
    """CDC's term, with a frozen copy of the source generator."""
    return cdc_part(config, ingredients.gan, ingredients.source_gan())
