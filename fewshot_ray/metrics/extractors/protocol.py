"""What an extractor is, and what all of them share: batches, the check of their features, and the resize."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fewshot_ray.errors import UserError
from fewshot_ray.models.memory import in_parts

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Extractor(Protocol):
    """Features of images, and how a value's measurement protocol describes them."""

    @property
    def id(self) -> str:
        """Name of the network and the layer."""

    @property
    def weights_hash(self) -> str:
        """The first 12 hex digits of the weights' sha256."""

    @property
    def resize(self) -> str:
        """What is done to the images first, in words."""

    @property
    def dimension(self) -> int | None:
        """Numbers in an image's features; None before the first images where only the network knows."""

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, D] on the CPU, in batches, without gradients. Raises UserError where they aren't finite."""


@torch.no_grad()
def in_batches(of: Callable[[Tensor], Tensor], images: Tensor, batch_images: int, name: str) -> Tensor:
    """`of` each batch of images [N, C, H, W], as float32 [N, D] on the CPU. Raises UserError where a feature isn't finite."""
    return checked(torch.cat(in_parts(lambda batch: of(batch).float().cpu(), images, batch_images)), name)


def checked(features: Tensor, name: str) -> Tensor:
    """The features [N, D] themselves. Raises UserError, with the extractor's name and the number of images, where some aren't finite."""
    bad = int((~features.isfinite().all(1)).sum())
    if bad:
        raise UserError(
            f"evaluate.extractor: {name} gives NaN or infinite features for {bad} of {len(features)} images; "
            "weights that give finite ones are right"
        )
    return features


def resize_rgb(images: Tensor, size: int) -> Tensor:
    """Images [N, C, H, W] in 0 .. 255, grey or RGB -> float32 [N, 3, size, size] in 0 .. 255, antialiased bicubic, as Pillow resizes.

    Differentiable in images that are floats.
    """
    rgb = images.float().expand(-1, 3, -1, -1)
    return interpolate(rgb, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)


def standardised(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels [N, 3, H, W] in 0 .. 255 -> (pixels / 255 - mean) / std, by channel."""
    shift, scale = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (mean, std))
    return (pixels / 255 - shift) / scale
