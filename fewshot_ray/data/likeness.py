"""Whether two pictures are the same: by content, or re-encoded (another format, size or colour profile), or only similar."""

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
"""Perceptual hashes (64 bits) that differ in at most this many bits count as similar."""
SMALLEST_HASHED_PIXELS = 32
"""Below this side pictures get no hash: it would enlarge them, and different ones get the same hash (125 of the 797 digits at 8x8)."""
BLOCKS = 8
"""Side of the grid of block means on which similar pictures are compared."""
SAME_MEAN = 12.0
"""Largest difference of block means (luma, of 255) of a re-encoded picture.

JPEG of quality 10 moves a block's mean by 2 to 7, a different mouth on an otherwise equal face by 25.
"""
LUMA = (0.299, 0.587, 0.114)
"""Luma weights (ITU-R 601); colours aren't compared, since strong JPEG compression changes them."""


@dataclass(frozen=True)
class Likeness:
    """A picture of one set that resembles a picture of another set."""

    index: int
    other: int
    same: bool
    """Whether they are the same picture (by content or re-encoded), not only similar."""


def perceptual_hash(image: Image.Image) -> int | None:
    """64-bit pHash (signs of the low DCT frequencies of a 32x32 grey copy about their median); None for a picture too small for it.

    It survives re-encoding and resizing.
    """
    return int(str(imagehash.phash(image)), 16) if min(image.size) >= SMALLEST_HASHED_PIXELS else None


def likenesses(images: ImageSet, others: ImageSet) -> list[Likeness]:
    """At most one per picture of `images`: with the picture of `others` of the same content, else with the nearest similar one."""
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
    """Whether the block means of two uint8 pictures `[C, H, W]`, at the model's size, are close."""
    grid = (min(BLOCKS, one.shape[-2]), min(BLOCKS, one.shape[-1]))
    weights = torch.tensor(LUMA if one.shape[0] == 3 else (1.0,))
    difference = torch.einsum("chw,c->hw", one.float() - other.float(), weights)
    return float(adaptive_avg_pool2d(difference[None], grid).abs().max()) < SAME_MEAN
