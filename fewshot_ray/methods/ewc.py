"""EWC: elastic weight consolidation of the source generator (Li et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fewshot_ray.methods.gan import GanPart, Play
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.methods.stage import Stage
from fewshot_ray.models.gan import Gan
from fewshot_ray.spec.ranges import FloatRange


class EwcConfig(MethodConfig):
    """Keeps weights with a high Fisher information in the source generator near their source values."""

    needs_source = True
    weight: Annotated[float, Field(ge=0), FloatRange(1e6, 1e10, log=True)] = 5e8
    """lambda, the weight of the Fisher-weighted sum of squares."""
    fisher_samples: int = Field(default=512, ge=1)
    """Generated images that the Fisher information is estimated from."""

    @property
    def prepares(self) -> bool:
        """Whether the Fisher information is computed before trials start: not where the weight is 0."""
        return self.weight > 0


def fisher_information(gan: Gan, samples: int, seed: int) -> dict[str, Tensor]:
    """`F_i = E[(d/d theta_i -log D(G(z)))^2]` of every weight of the generator, with its discriminator D, one image per pass (Eq. 3)."""
    device = next(gan.generator.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    parameters = dict(gan.generator.named_parameters())
    fisher = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for _ in range(samples):
        made = gan.make(gan.codes(torch.randn((1, gan.latent_dim), generator=generator, device=device)))
        loss = F.softplus(-gan.view(made.image, made.small).logits).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(fisher.values(), gradients, strict=True):
            total += gradient.square() / samples
    return fisher


class Ewc:
    """`sum_i F_i (theta_i - theta_S,i)^2` (Eq. 2)."""

    def __init__(self, config: EwcConfig, gan: Gan, source: Gan, fisher: Mapping[str, Tensor]) -> None:
        self.config = config
        self.parameters = dict(gan.generator.named_parameters())
        self.source = {name: parameter.detach() for name, parameter in source.generator.named_parameters()}
        self.fisher = fisher

    def generator(self, play: Play) -> Objective:
        """The term `ewc`, the same value for every image."""
        loss = torch.stack([(self.fisher[name] * (p - self.source[name]).square()).sum() for name, p in self.parameters.items()]).sum()
        return play.term("ewc", loss.expand(len(play.z)), self.config.weight)


def ewc_part(config: EwcConfig, gan: Gan, source: Gan, fisher: Mapping[str, Tensor]) -> GanPart:
    """EWC as a term of the generator's loss."""
    return GanPart(generator=Ewc(config, gan, source, fisher).generator)


def fisher_stage(config: EwcConfig, ingredients: GanIngredients) -> Stage:
    """The Fisher information, computed once per sweep."""
    depends_on = {"source": ingredients.source_hash, "samples": config.fisher_samples, "seed": ingredients.seed, "version": 1}
    return Stage("fisher", depends_on, lambda: fisher_information(ingredients.source_gan(), config.fisher_samples, ingredients.seed))


@register_gan("ewc", EwcConfig, stages=lambda config, ingredients: [fisher_stage(config, ingredients)] if config.prepares else [])
def make_ewc(config: EwcConfig, ingredients: GanIngredients) -> GanPart:
    """EWC's term, with the Fisher information from the cache; no term where the weight is 0."""
    if config.weight == 0:
        return GanPart()
    source = ingredients.source_gan()
    device = next(source.generator.parameters()).device
    fisher = {name: tensor.to(device) for name, tensor in ingredients.read(fisher_stage(config, ingredients)).items()}
    return ewc_part(config, ingredients.gan, source, fisher)
