"""A grid of images as a PNG."""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

SMALLEST_TILE = 64
"""Pixels; smaller images are enlarged by the largest whole factor that keeps to this side."""


def strip_name(step: int) -> str:
    """The file name of interpolations through the latent space, e.g. `path_000080.png`."""
    return f"path_{step:06d}.png"


def grid_png(images: Tensor, *, columns: int | None = None) -> bytes:
    """Images uint8 `[N, C, H, W]`, N >= 1, in rows of `columns`, by default of about sqrt(N)."""
    factor = max(1, SMALLEST_TILE // max(images.shape[-2:]))
    larger = images.cpu().repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    grid = make_grid(larger, nrow=columns or math.ceil(math.sqrt(len(images))), padding=2, pad_value=255).to(torch.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()
