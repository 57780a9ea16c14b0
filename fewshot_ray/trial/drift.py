"""How far a model's samples are from the source model's of the same noise, in pixels."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_IMAGES = 64
"""Of a larger grid the first so many count: as float64 a thousand images of 256 x 256 take 1.5 GB."""


def drift(samples: Tensor, source: Tensor) -> float | None:
    """Mean Euclidean distance of samples from the source's of the same noise, over the mean distance between two of the source's.

    Both are uint8 `[N, C, H, W]`. 0 where nothing has changed, about 1 where the samples are as far from the source's as these are from
    each other. None for fewer than two images, or where all of the source's are the same.
    """
    ours, theirs = (images[:MOST_IMAGES].cpu().flatten(1).double() for images in (samples, source))
    between = torch.pdist(theirs)
    if len(theirs) < 2 or not float(between.sum()) > 0:
        return None
    return float((ours - theirs).norm(dim=1).mean() / between.mean())
