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
    """Weights that matter to the source generator stay near the source's."""

    needs_source = True
    weight: Annotated[float, Field(ge=0), FloatRange(1e6, 1e10, log=True)] = 5e8
    """Lambda, of the weighted sum of squares."""
    fisher_samples: int = Field(default=512, ge=1)
    """Generated images that the weights' importance is measured on."""

    @property
    def prepares(self) -> bool:
        """The weights' importance."""
        return self.weight > 0


def fisher_information(gan: Gan, samples: int, seed: int) -> dict[str, Tensor]:
    """`F_i = E[(d/d theta_i -log D(G(z)))^2]` of every weight of the generator, by its own discriminator, an image at a time (Eq. 3)."""
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
        """The same for every image."""
        loss = torch.stack([(self.fisher[name] * (p - self.source[name]).square()).sum() for name, p in self.parameters.items()]).sum()
        return play.term("ewc", loss.expand(len(play.z)), self.config.weight)


def ewc_part(config: EwcConfig, gan: Gan, source: Gan, fisher: Mapping[str, Tensor]) -> GanPart:
    """A term for the generator."""
    return GanPart(generator=Ewc(config, gan, source, fisher).generator)


def fisher_stage(config: EwcConfig, ingredients: GanIngredients) -> Stage:
    """The weights' importance, once for a sweep."""
    depends_on = {"source": ingredients.source_hash, "samples": config.fisher_samples, "seed": ingredients.seed, "version": 1}
    return Stage("fisher", depends_on, lambda: fisher_information(ingredients.source_gan(), config.fisher_samples, ingredients.seed))


@register_gan("ewc", EwcConfig, stages=lambda config, ingredients: [fisher_stage(config, ingredients)] if config.prepares else [])
def make_ewc(config: EwcConfig, ingredients: GanIngredients) -> GanPart:
    """See `ewc_part`."""
    if config.weight == 0:
        return GanPart()
    source = ingredients.source_gan()
    device = next(source.generator.parameters()).device
    fisher = {name: tensor.to(device) for name, tensor in ingredients.read(fisher_stage(config, ingredients)).items()}
    return ewc_part(config, ingredients.gan, source, fisher)
