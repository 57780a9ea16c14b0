"""Whether two pictures are one: by content, or saved again (another format, size or colour profile), or only much alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import imagehash
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

if TYPE_CHECKING:
    from fewshot_ray.data.images import ImageSet

SIMILAR_BITS = 6
"""Perceptual hashes (64 bits) that differ in no more than this count as alike."""
SMALLEST_HASHED_PIXELS = 32
"""The hash enlarges anything smaller, and different pictures of a kind then look the same (125 of the embedded 797 digits at 8x8)."""
BLOCKS = 8
"""A side of the grid that pictures much alike are compared on."""
SAME_MEAN = 12.0
"""Of 255, in luma. JPEG of quality 10 moves a block's mean by 2 to 7, another mouth on an otherwise equal face by 25."""
LUMA = (0.299, 0.587, 0.114)
"""ITU-R 601: small JPEGs keep little of the colours."""


@dataclass(frozen=True)
class Likeness:
    """One picture of a set that is like one of another set."""

    index: int
    other: int
    same: bool
    """One picture, saved again; else only much alike."""


def perceptual_hash(image: Image.Image) -> int | None:
    """64-bit pHash (signs of the low DCT frequencies of a 32x32 grey copy about their median); None for a picture too small for it.

    It survives re-encoding and resizing.
    """
    return int(str(imagehash.phash(image)), 16) if min(image.size) >= SMALLEST_HASHED_PIXELS else None


def likenesses(images: ImageSet, others: ImageSet) -> list[Likeness]:
    """At most one for each of `images`: to the picture of `others` with the same content, else to the nearest that is alike."""
    by_content = {content: index for index, content in enumerate(others.hashes)}
    hashed = [index for index, value in enumerate(others.perceptual) if value is not None]
    hashes = np.array([others.perceptual[index] for index in hashed], dtype=np.uint64)
    found = []
    for index, content in enumerate(images.hashes):
        own = images.perceptual[index] if images.perceptual else None
        if content in by_content:
            found.append(Likeness(index, by_content[content], same=True))
        elif own is not None and len(hashed):
            bits = np.bitwise_count(hashes ^ np.uint64(own))
            if bits.min() <= SIMILAR_BITS:
                alike = [hashed[place] for place in np.flatnonzero(bits <= SIMILAR_BITS)]
                same = [other for other in alike if _same_blocks(images.images[index], others.images[other])]
                found.append(Likeness(index, same[0] if same else hashed[int(bits.argmin())], same=bool(same)))
    return found


def _same_blocks(one: Tensor, other: Tensor) -> bool:
    """Of two uint8 pictures `[C, H, W]` at the model's size."""
    grid = (min(BLOCKS, one.shape[-2]), min(BLOCKS, one.shape[-1]))
    weights = torch.tensor(LUMA if one.shape[0] == 3 else (1.0,))
    difference = torch.einsum("chw,c->hw", one.float() - other.float(), weights)
    return float(adaptive_avg_pool2d(difference[None], grid).abs().max()) < SAME_MEAN
