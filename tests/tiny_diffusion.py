"""Networks of a few thousand parameters on 8x8 grey images, in each of the three prediction spaces."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import Draw, NoiseSelector
from fewshot_ray.methods.phase import Batch, Objective, Weighted
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.backbone import Backbone

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TINY_UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
TINY_DIT = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 8,
    "num_embeds_ada_norm": 10,
}


def tiny_unet(seed: int = 0, **changes: object) -> UNet2DModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DModel(**{**TINY_UNET, **changes}).eval()


def tiny_backbone(prediction_type: str = "epsilon", seed: int = 0, **scheduler: object) -> Backbone:
    return Backbone(tiny_unet(seed), DDPMScheduler(prediction_type=prediction_type, **scheduler))


def learned_backbone(prediction_type: str = "epsilon", seed: int = 0) -> Backbone:
    """With a learned variance."""
    scheduler = DDPMScheduler(prediction_type=prediction_type, variance_type="learned_range")
    return Backbone(tiny_unet(seed, out_channels=2), scheduler)


def images(count: int, seed: int = 0, channels: int = 1, size: int = 8) -> Tensor:
    return torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def normal(count: int, seed: int = 1, channels: int = 1, size: int = 8) -> Tensor:
    return torch.randn((count, channels, size, size), generator=torch.Generator().manual_seed(seed))


def batch(count: int = 4, step: int = 0, seed: int = 0) -> Batch:
    return Batch(images(count, seed), range(count), count, step)


def draw(backbone: Backbone, selector: NoiseSelector | None = None, *, count: int = 4, network: nn.Module | None = None) -> Draw:
    return Draw(backbone, network or backbone.network, batch(count), Randomness(0), selector)


def everything(method: DiffusionMethod, context: Draw) -> Objective:
    """All terms of the denoiser's phase, those over the whole batch among them."""
    terms = Weighted()
    terms.add(method.loss(context))
    for relation in method.phases()[-1].relations:
        rows = {name: row.float() for name, row in relation.rows(context).items()}
        with torch.autocast("cpu", enabled=False):  # as the loop does
            terms.add(relation.terms(rows))
    return terms.objective()


class Calls(nn.Module):
    """A network that counts its forward passes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.count = 0

    def forward(self, *args: object, **keywords: object) -> object:
        self.count += 1
        return self.network(*args, **keywords)


class Formula(nn.Module):
    """A network given by a formula over (x_t, t)."""

    def __init__(self, formula: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Formula:
        self.sample = self.formula(x_t, t)
        return self
