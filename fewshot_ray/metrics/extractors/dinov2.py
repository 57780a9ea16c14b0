"""`dinov2`: DINOv2's class token, as FD-DINOv2 uses it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot_ray.metrics.extractors.protocol import IMAGENET_MEAN, IMAGENET_STD, in_batches, resize_rgb, standardised
from fewshot_ray.metrics.extractors.transformer import DINOV2, load_transformer, located, weights_hash

SIZE = 224


@dataclass(frozen=True)
class Dinov2Extractor:
    """The class token after the final layer norm (Oquab et al. 2023), D = 1,024 for ViT-L/14, the network of Stein et al. 2023.

    As theirs, images come in at 224x224 through an antialiased bicubic resize, rounded to 8 bits, with ImageNet's mean and deviation.
    """

    network: nn.Module
    weights_hash: str
    dimension: int
    device: torch.device
    resize: str = "antialiased bicubic to 224x224"
    batch_images: int = 32

    @property
    def id(self) -> str:
        """With the dimension, which tells the network's size."""
        return f"dinov2-{self.dimension}"

    def features(self, images: Tensor) -> Tensor:
        """Features [N, D] of uint8 [N, C, H, W], grey or RGB."""

        def of(batch: Tensor) -> Tensor:
            pixels = resize_rgb(batch.to(self.device), SIZE).round()
            return class_token(self.network, standardised(pixels, IMAGENET_MEAN, IMAGENET_STD))

        return in_batches(of, images, self.batch_images, self.id)


def class_token(network: nn.Module, inputs: Tensor) -> Tensor:
    """float32 [N, D] of standardised images [N, 3, 224, 224]; differentiable."""
    tokens: Tensor = network(inputs).last_hidden_state
    return tokens[:, 0].float()


def load_dinov2(device: torch.device, weights: str | None, field: str) -> Dinov2Extractor:
    """The folder or hub id `weights`, of any size of DINOv2, else ViT-L/14. Raises UserError where it can't be had or doesn't fit."""
    folder = located(DINOV2, weights or DINOV2.hub_id, field)
    network = load_transformer(DINOV2, folder, field).eval().requires_grad_(False)
    return Dinov2Extractor(network.to(device), weights_hash(folder), network.config.hidden_size, device)
