"""StyleGAN2's training: non-saturating loss, lazy R1 and path length, style mixing (Karras et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fewshot_ray.methods.adversarial import NonSaturating, gradient_penalty, path_lengths, path_penalty
from fewshot_ray.methods.augment import Augmentation
from fewshot_ray.methods.gan import GanDraw, GanMethod, GanPart, Play
from fewshot_ray.methods.phase import Objective, Phase
from fewshot_ray.methods.recipe import RecipeConfig
from fewshot_ray.models.gan import Made, StyleGan2, View
from fewshot_ray.spec.ranges import FloatRange


class StyleGan2Recipe(RecipeConfig):
    """How a StyleGAN2 is trained."""

    r1: Annotated[float, Field(ge=0), FloatRange(0.1, 50.0, log=True)] = 10.0
    """Weight gamma of R1, which enters as gamma / 2; 0 leaves it out."""
    r1_every: int = Field(default=16, ge=1)
    """R1 is applied every so many steps, and its weight multiplied by the same number (lazy regularisation)."""
    path_length: float = Field(default=2.0, ge=0)
    """Weight of the path length regularisation; 0 leaves it out."""
    path_every: int = Field(default=4, ge=1)
    """Path length regularisation is applied every so many steps, and its weight multiplied by the same number."""
    path_shrink: int = Field(default=2, ge=1)
    """Divisor of the batch for path length regularisation: it uses 1/n of a worker's images, at least one."""
    path_decay: float = Field(default=0.01, gt=0, le=1)
    """Share of a step's mean in the running mean of path lengths, the regularisation's target."""
    style_mixing: float = Field(default=0.9, ge=0, le=1)
    """Probability that the images of a step mix the styles of two latents."""

    def lazy(self, player: str, betas: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        """A player's learning rate factor `k / (k + 1)` and Adam's betas to that power, for regularisation in every k-th step."""
        weight, every = (self.r1, self.r1_every) if player == "D" else (self.path_length, self.path_every)
        ratio = every / (every + 1) if weight > 0 else 1.0
        return ratio, (betas[0] ** ratio, betas[1] ** ratio)


class StyleGan2Method(GanMethod):
    """Phases D, D_r1, G and G_path: each player and its regularisation share one Adam."""

    gan: StyleGan2

    def __init__(self, gan: StyleGan2, recipe: StyleGan2Recipe, parts: Sequence[GanPart], augmentation: Augmentation | None) -> None:
        super().__init__(gan, parts, augmentation)
        self.recipe = recipe
        self.adversarial = NonSaturating()
        self.mean_path_length = torch.zeros((), device=next(gan.generator.parameters()).device)

    def make_phases(self) -> Sequence[Phase]:
        """D, D_r1, G and G_path, each regularisation in every k-th step; those with weight 0 are left out."""
        discriminator, generator = self.discriminator_parameters(), list(self.gan.generator.parameters())
        phases = [Phase("D", discriminator, "D", self.discriminator_loss)]
        if self.recipe.r1 > 0:
            phases.append(Phase("D_r1", discriminator, "D", self.r1, active=lambda step: step % self.recipe.r1_every == 0))
        phases.append(Phase("G", generator, "G", self.generator_loss))
        if self.recipe.path_length > 0:
            phases.append(Phase("G_path", generator, "G", self.path, active=lambda step: step % self.recipe.path_every == 0))
        return phases

    def make_fakes(self, play: Play) -> Made:
        """Images with style mixing at its probability, except where images are compared with their latents."""
        compared = play.mixup is not None or (play.player == "G" and any(part.compares_latents for part in self.parts))
        styles = self.styles(play.draw, play.codes, play.player, mixing=not compared)
        return self.gan.make_styles(styles, play.draw.noise(f"{play.player}/fakes"))

    def styles(self, draw: GanDraw, codes: Tensor, purpose: str, *, mixing: bool = True) -> Tensor:
        """Styles `[b, style_count, latent_dim]` of `codes`, with `mixing` those of a second latent from a random layer on."""
        generator = self.gan.generator
        if not mixing or draw.one_uniform(f"{purpose}/mixing") >= self.recipe.style_mixing:
            return generator.styles(codes)
        crossover = 1 + int(draw.one_uniform(f"{purpose}/crossover") * (generator.style_count - 1))
        other = generator.mapping(draw.normal(f"{purpose}/z-other", self.gan.latent_dim)[: len(codes)])
        return generator.styles(codes, other, crossover)

    def r1(self, draw: GanDraw) -> Objective:
        """`gamma / 2 ||grad_x D(x)||^2` for the discriminator's own logits and for those that mixtures are judged by."""
        weight = self.recipe.r1 / 2 * self.recipe.r1_every
        real, terms = draw.batch.x_0, {"r1": gradient_penalty(draw.batch.x_0, lambda x: self._seen(draw, x).logits)}
        if self.mixup is not None:
            mixup = self.mixup
            terms["r1_mixup"] = gradient_penalty(real, lambda x: mixup.logits(self._seen(draw, x), draw))
        return Objective(terms, dict.fromkeys(terms, weight))

    def _seen(self, draw: GanDraw, images: Tensor) -> View:
        return self.gan.view(self.augmented(draw, "D_r1/real", images))

    def path(self, draw: GanDraw) -> Objective:
        """`(||J_w^T y||_2 - a)^2` (Eq. 4), a the running mean of the lengths, including this step's."""
        count = max(1, len(draw.batch.x_0) // self.recipe.path_shrink)
        codes = self.gan.codes(draw.normal("G_path/z", self.gan.latent_dim)[:count])
        styles = self.styles(draw, codes, "G_path")
        image = self.gan.make_styles(styles, [noise[:count] for noise in draw.noise("G_path")]).image
        lengths = path_lengths(image, styles, draw.normal("G_path/y", *image.shape[1:])[:count])
        seen = torch.stack([lengths.detach().sum(), torch.ones_like(lengths).sum()])
        self.workers.sum_([seen])
        self.mean_path_length.lerp_(seen[0] / seen[1], self.recipe.path_decay)
        penalty = path_penalty(lengths, self.mean_path_length, self.recipe.path_decay, total=seen[0], count=seen[1])
        # The loop divides by the number of images in the batch, more than are used here.
        share = len(draw.batch.x_0) / count
        return Objective({"path": penalty * share}, {"path": self.recipe.path_length * self.recipe.path_every})

    def buffers(self) -> Mapping[str, Tensor]:
        """The running statistics of all GANs, and the mean path length."""
        return {**super().buffers(), "mean_path_length": self.mean_path_length}
