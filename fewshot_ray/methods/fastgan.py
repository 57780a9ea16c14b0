"""FastGAN's training: hinge loss, and a discriminator that also reconstructs the real images (Liu et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from fewshot_ray.methods.adversarial import Hinge
from fewshot_ray.methods.augment import Augmentation, DiffAugmentConfig
from fewshot_ray.methods.gan import GanMethod, GanPart, Play
from fewshot_ray.methods.phase import Objective, Phase
from fewshot_ray.methods.recipe import RecipeConfig
from fewshot_ray.models.fastgan import resized
from fewshot_ray.models.gan import FastGan, FastGanView


class FastGanRecipe(RecipeConfig):
    """How a FastGAN is trained."""

    diffaugment: DiffAugmentConfig | None = DiffAugmentConfig()
    """DiffAugment of the discriminator's input; null leaves it out."""
    reconstruction: Literal["lpips", "pixels"] = "lpips"
    """Distance between real and reconstructed images: LPIPS (the paper's), or the mean absolute difference of pixels."""
    reconstruction_weight: float = Field(default=1.0, ge=0)
    """Weight of each of the three reconstructions: of the image, of one quarter and of the small image; 0 leaves them out."""


class ImageDistance(Protocol):
    """A differentiable distance `[b]` between pairs of images `[b, C, H, W]` in [-1, 1]."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """The distance of each pair `[b]`."""
        ...


def pixel_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference `[b]`."""
    return (x - y).abs().mean(dim=(1, 2, 3))


class FastGanMethod(GanMethod):
    """FastGAN's training: the phases D and G."""

    gan: FastGan

    def __init__(
        self,
        gan: FastGan,
        recipe: FastGanRecipe,
        parts: Sequence[GanPart],
        augmentation: Augmentation | None,
        distance: ImageDistance = pixel_distance,
    ) -> None:
        super().__init__(gan, parts, augmentation)
        self.recipe = recipe
        self.distance = distance
        self.adversarial = Hinge()

    def make_phases(self) -> Sequence[Phase]:
        """D with the hinge loss and the reconstructions, then G."""
        generator = list(self.gan.generator.parameters())
        return [Phase("D", self.discriminator_parameters(), "D", self.discriminator_loss), Phase("G", generator, "G", self.generator_loss)]

    def extra_terms(self, play: Play) -> Objective:
        """Reconstructions: the image from the trunk's last map, a quarter from the same quarter of the map before, the small image."""
        weight, view = self.recipe.reconstruction_weight, play.real_view
        if weight == 0:
            return Objective({}, {})
        assert isinstance(view, FastGanView)
        network, size, image = self.gan.discriminator, self.gan.discriminator.small_size, view.image.detach()
        quarter = int(play.draw.one_uniform("D/quarter") * 4)
        small, part = resized(image, size), resized(part_of(image, quarter), size)
        terms = {
            "redrawn": self.distance(network.decode_last(view.judgement.last), small),
            "redrawn_part": self.distance(network.decode_part(part_of(view.judgement.part, quarter)), part),
            "redrawn_small": self.distance(network.decode_small(view.judgement.small), small),
        }
        return Objective(terms, dict.fromkeys(terms, weight))


def part_of(x: Tensor, quarter: int) -> Tensor:
    """Quarter 0 to 3, counted row by row, of `[b, C, H, W]`."""
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    row, column = divmod(quarter, 2)
    return x[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width]
