"""GANs of a few thousand parameters, and one step of their training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewshot_ray.methods.augment import Augmentation
from fewshot_ray.methods.fastgan import FastGanMethod, FastGanRecipe
from fewshot_ray.methods.gan import GanDraw, GanMethod, GanPart, Play
from fewshot_ray.methods.phase import Batch, Objective
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.stylegan2 import StyleGan2Method, StyleGan2Recipe
from fewshot_ray.models.fastgan import FastGanDiscriminator, FastGanGenerator
from fewshot_ray.models.gan import FastGan, Gan, StyleGan2
from fewshot_ray.models.stylegan2 import StyleGan2Discriminator, StyleGan2Generator
from tests.tiny_diffusion import images

GANS = ("stylegan2", "fastgan")


def tiny_stylegan2(resolution: int = 16, channels: int = 1, seed: int = 0) -> StyleGan2:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = {"channel_base": 16 * resolution, "channel_max": 16}
        generator = StyleGan2Generator(resolution, channels, latent_dim=16, mapping_layers=2, **width)
        return StyleGan2(generator, StyleGan2Discriminator(resolution, channels, **width))


def tiny_fastgan(resolution: int = 64, channels: int = 1, seed: int = 0) -> FastGan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = FastGanGenerator(resolution, channels, latent_dim=16, width=2)
        return FastGan(generator, FastGanDiscriminator(resolution, channels, width=2))


def tiny_gan(name: str, seed: int = 0) -> Gan:
    return tiny_stylegan2(seed=seed) if name == "stylegan2" else tiny_fastgan(seed=seed)


def method_of(gan: Gan, parts: Sequence[GanPart] = (), augmentation: Augmentation | None = None, **settings: object) -> GanMethod:
    """With SGD, whose step is the gradient."""
    if isinstance(gan, StyleGan2):
        method: GanMethod = StyleGan2Method(gan, StyleGan2Recipe(**settings), parts, augmentation)
    else:
        assert isinstance(gan, FastGan)
        method = FastGanMethod(gan, FastGanRecipe(**{"reconstruction": "pixels", **settings}), parts, augmentation)
    discriminator = torch.optim.SGD(method.discriminator_parameters(), lr=1.0)
    method.use({"D": discriminator, "G": torch.optim.SGD(gan.generator.parameters(), lr=1.0)})
    return method


def gan_draw(method: GanMethod, *, step: int = 0, count: int = 8, seed: int = 0, own: slice = slice(None)) -> GanDraw:
    """A step's draw, of the whole batch or a worker's part of it."""
    gan = method.gan
    real = images(count, seed, gan.channels, gan.size[0])[own]
    return method.context(Batch(real, range(count)[own], count, step), Randomness(seed))


def play_of(method: GanMethod, player: str = "G", **settings: object) -> Play:
    return Play(method, gan_draw(method, **settings), player)


def total(objective: Objective) -> Tensor:
    """The weighted sum of the terms' means."""
    return torch.stack([objective.weight[name] * values.mean() for name, values in objective.per_sample.items()]).sum()
