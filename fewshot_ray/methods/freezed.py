"""FreezeD: the discriminator's first layers keep the source's weights (Mo et al. 2020)."""

from __future__ import annotations

from pydantic import Field

from fewshot_ray.methods.gan import GanPart
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.models.gan import Gan


class FreezeDConfig(MethodConfig):
    """The discriminator's first blocks keep the source's weights; the later ones are trained."""

    needs_source = True
    layers: int = Field(default=5, ge=1)
    """Number of blocks, counted from the image, that aren't trained; the default is the paper's best for 256x256 faces."""


def freezed_part(config: FreezeDConfig, gan: Gan) -> GanPart:
    """The discriminator's frozen parameters."""
    blocks = gan.discriminator_blocks[: config.layers]
    return GanPart(held=[parameter for block in blocks for parameter in block.parameters()])


@register_gan("freezed", FreezeDConfig)
def make_freezed(config: FreezeDConfig, ingredients: GanIngredients) -> GanPart:
    """FreezeD's frozen parameters; it adds no loss."""
    return freezed_part(config, ingredients.gan)
