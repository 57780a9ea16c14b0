"""MixDL: mixup distance learning (Kong et al., ECCV 2022); unnumbered equations of the thesis' sections 3.2 to 3.4."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fewshot_ray.methods.gan import GanDraw, GanPart, Play, Player
from fewshot_ray.methods.grouped import of_group, similarities
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.randomness import on_device
from fewshot_ray.methods.registry import GanIngredients, MethodConfig, register_gan
from fewshot_ray.models.gan import Gan, View
from fewshot_ray.spec.ranges import FloatRange

NONE = Objective({}, {})


class MixDlConfig(MethodConfig):
    """The image of a mixture of latents is to be similar to the latents' images in proportion to the mixture's coefficients, measured in
    the features of generator and discriminator."""

    least_batch = 2

    lambda_g: Annotated[float, Field(ge=0), FloatRange(100.0, 5000.0, log=True)] = 1000.0
    """Weight of the generator's distance loss, averaged over the anchors (the authors' code also divides by N: its 1000 is 250 here)."""
    lambda_d: Annotated[float, Field(ge=0), FloatRange(0.1, 10.0, log=True)] = 1.0
    """Weight of the discriminator's distance loss."""
    alpha: Annotated[float, Field(gt=0), FloatRange(0.1, 10.0, log=True)] = 1.0
    """Dirichlet concentration of the mixtures: below 1 mostly one latent, above 1 about equal parts of all."""
    latents: int = Field(default=4, ge=2)
    """N, the latents per group: each batch is split into groups, and latents are mixed within a group."""
    divergence: Literal["paper", "code"] = "paper"
    """KL(q || p) as in the paper, or KL(p || q) as in the authors' code; p: the softmax of the mixture's coefficients."""
    layers: list[str] | None = Field(default=None, min_length=1)
    """The generator's layers that each anchor's l is drawn from; default: StyleGAN2's but the 4x4 and the last, FastGAN's up to 32x32."""
    every_steps: int = Field(default=2, ge=1)
    """Mixtures are judged in every n-th step, plain images in the others; 1: in all steps."""

    @property
    def group_size(self) -> int:
        """N: the batch is a whole number of groups of N images, which are compared with each other."""
        return self.latents


class MixDl:
    """Anchors, distance losses and heads, for one GAN."""

    def __init__(self, config: MixDlConfig, gan: Gan) -> None:
        self.config = config
        self.layers = list(config.layers or gan.distance_layers)
        self.patch_sizes = list(gan.patch_maps)
        self.projection = nn.Linear(gan.hidden_dim, 512)
        self.patches = nn.ModuleDict({str(size): nn.Conv2d(width, 1, 3, padding=1) for size, width in gan.patch_maps.items()})

    def active(self, step: int) -> bool:
        """True in the last of every `every_steps` steps."""
        return (step + 1) % self.config.every_steps == 0

    def coefficients(self, draw: GanDraw, player: Player) -> Tensor:
        """Mixture coefficients `c ~ Dir(alpha, ..., alpha)`, `[b, N]`."""
        return draw.dirichlet(f"{player}/coefficients", self.config.alpha, self.config.latents)

    def mix(self, codes: Tensor, draw: GanDraw, player: Player) -> Tensor:
        """`z_0 = sum_i c_i z_i` over an anchor's group, `[b, D]`."""
        c = self.coefficients(draw, player)
        return torch.einsum("bn,bnd->bd", c, of_group(codes, self.config.latents))

    def logits(self, view: View, draw: GanDraw) -> Tensor:
        """Logits of patches of one of the trunk's maps, drawn per step; the discriminator's own where it already judges patches."""
        if not self.patch_sizes:
            return view.logits
        size = self.patch_sizes[int(draw.one_uniform("patches") * len(self.patch_sizes))]
        logits: Tensor = self.patches[str(size)](view.map(size)).flatten(1)
        return logits

    def generator(self, play: Play) -> Objective:
        """`L_dist^G = KL(q^l || p)`, `q^l = softmax_i sim(G^l(z_0), G^l(z_i))`; an anchor's layer l is drawn."""
        if play.mixup is None or self.config.lambda_g == 0:
            return NONE
        drawn, chosen = play.draw.integers("G/layer", len(self.layers)), torch.zeros((), device=play.z.device)
        for index in drawn.unique().tolist():
            anchors, fakes = play.anchors.features[self.layers[index]], play.fakes.features[self.layers[index]]
            here = on_device(drawn == index, chosen.device)[:, None]
            chosen = torch.where(here, similarities(anchors, fakes, self.config.latents), chosen)
        return play.term("distance_g", self.distance(chosen, self.coefficients(play.draw, "G")), self.config.lambda_g)

    def discriminator(self, play: Play) -> Objective:
        """`L_dist^D = KL(r || p)`, `r = softmax_i sim(proj d^1(G z_0), proj d^1(G z_i))`."""
        if play.mixup is None or self.config.lambda_d == 0:
            return NONE
        anchors, fakes = self.projection(play.judged_view.hidden), self.projection(play.fakes_view.hidden)
        chosen = similarities(anchors, fakes, self.config.latents)
        return play.term("distance_d", self.distance(chosen, self.coefficients(play.draw, "D")), self.config.lambda_d)

    def distance(self, similarity: Tensor, c: Tensor) -> Tensor:
        """The divergence of `softmax(similarity)` and `softmax(c)`, `[b]` each, from `[b, N]`."""
        log_q, log_p = F.log_softmax(similarity.float(), dim=1), F.log_softmax(c.float(), dim=1)
        if self.config.divergence == "paper":
            return (log_q.exp() * (log_q - log_p)).sum(dim=1)
        return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def mixdl_part(config: MixDlConfig, gan: Gan) -> GanPart:
    """MixDL's terms, mixup and heads; nothing where both weights are 0."""
    if config.lambda_g == config.lambda_d == 0:
        return GanPart()
    mixdl = MixDl(config, gan)
    heads: dict[str, nn.Module] = {"mixdl_patches": mixdl.patches} if mixdl.patch_sizes else {}
    if config.lambda_d > 0:
        heads["mixdl_projection"] = mixdl.projection
    return GanPart(discriminator=mixdl.discriminator, generator=mixdl.generator, mixup=mixdl, heads=heads)


@register_gan("mixdl", MixDlConfig)
def make_mixdl(config: MixDlConfig, ingredients: GanIngredients) -> GanPart:
    """MixDL's part; it needs nothing prepared."""
    return mixdl_part(config, ingredients.gan)
