"""Psi of SADM's structure term: networks from images to features, differentiable and trainable.

The extractors only evaluate; these are trained, so every call gives a separate network.
torchmetrics and transformers are imported only when needed (they take seconds).
"""

from __future__ import annotations

import copy
import difflib
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors import dinov2, inception, load_extractor
from fewshot_ray.metrics.extractors.protocol import IMAGENET_MEAN, IMAGENET_STD, resize_rgb
from fewshot_ray.metrics.extractors.transformer import DINOV2, load_transformer, located
from fewshot_ray.models.weights import INCEPTION, find_weights

ENCODERS = ("digits", "inception", "dinov2")
DINOV2_SMALL = "facebook/dinov2-small"


class Encoder(nn.Module):
    """Images `[b, C, H, W]` in [-1, 1], grey or RGB -> float32 features `[b, D]`, with gradients to both images and parameters.

    `train()` leaves it in eval mode: training changes its parameters, never the statistics of its BatchNorm.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` is; returns itself."""
        return super().train(False)


class DigitEncoder(Encoder):
    """The bundled digit network's penultimate layer, D = 64; 1x8x8 images only."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        """Features `[b, 64]` of images `[b, 1, 8, 8]` in [-1, 1]. Raises UserError on images of another size or with colour."""
        if images.shape[1:] != (1, 8, 8):
            size = "x".join(str(side) for side in images.shape[1:])
            raise UserError(f"method.sadm.encoder: 'digits' reads 1x8x8 images, not {size}; 'inception' is right for these")
        features: Tensor = self.trunk(images)
        return features.float()


class InceptionEncoder(Encoder):
    """Inception-V3 as FID uses it, D = 2048: what `InceptionExtractor` computes, without its rounding to 8 bits."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Features `[b, 2048]` of images `[b, C, H, W]` in [-1, 1], resized to 299x299."""
        pixels = resize_rgb((images + 1) * 127.5, inception.SIZE)
        features: Tensor = self.layers((pixels - 128) / 128)
        return features.flatten(1).float()


class Dinov2Encoder(Encoder):
    """DINOv2's class token after the final layer norm (Oquab et al. 2023), D = 384 for the small network, at 224x224."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[b, D]` of images `[b, C, H, W]` in [-1, 1], resized to 224x224."""
        pixels = resize_rgb((images + 1) * 127.5, dinov2.SIZE)
        return dinov2.class_token(self.network, (pixels / 255 - self.mean) / self.std)


def load_encoder(name: str, *, device: str | torch.device, weights: str | None, field: str = "method.sadm.encoder_weights") -> nn.Module:
    """A fresh `Encoder` called `name`, one of ENCODERS, on `device`, in eval mode; every parameter it uses requires a gradient.

    `weights` is read instead of the library's own: a file for 'inception', a folder or hub id for 'dinov2'; `field` is what it is called
    in messages. Raises UserError on an unknown name and where the weights can't be loaded.
    """
    if name == "digits":
        if weights is not None:
            raise UserError(f"{field}: {weights!r} is given, but those of 'digits' are bundled; leave the field out")
        encoder: Encoder = _digit_encoder()
    elif name == "inception":
        encoder = _inception_encoder(weights, field)
    elif name == "dinov2":
        encoder = _dinov2_encoder(weights or DINOV2_SMALL, field)
    else:
        nearest = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.0)[0]
        raise UserError(f"method.sadm.encoder: there is no {name!r}; {', '.join(ENCODERS)} are right (did you mean {nearest}?)")
    return encoder.to(device).eval()


def _digit_encoder() -> DigitEncoder:
    shared: Any = load_extractor("digits", device="cpu")
    return DigitEncoder(copy.deepcopy(shared.network.trunk).requires_grad_())


def _inception_encoder(place: str | None, field: str) -> InceptionEncoder:
    network = inception.inception_network(find_weights(replace(INCEPTION, field=field), place))
    return InceptionEncoder(inception.pooling_layers(network).requires_grad_())


def _dinov2_encoder(place: str, field: str) -> Dinov2Encoder:
    kind = replace(DINOV2, hub_id=DINOV2_SMALL)
    network = load_transformer(kind, located(kind, place, field), field)
    network.requires_grad_()
    if network.embeddings.mask_token is not None:  # used for masked images only: it would never receive a gradient
        network.embeddings.mask_token.requires_grad_(False)
    return Dinov2Encoder(network)
