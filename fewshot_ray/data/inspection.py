"""Problems of a set of pictures that a user should know before a search. Reports only; changes nothing."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from fewshot_ray.data.images import UnreadableImageError, content_hash, decoded, refuse_unreadable
from fewshot_ray.data.likeness import SIMILAR_BITS, perceptual_hash
from fewshot_ray.data.places import pictures

FindingKind = Literal["unreadable", "colour", "duplicate", "tiny", "aspect"]
ODD_ASPECT = 2.0


@dataclass(frozen=True)
class Finding:
    """A remark on one picture."""

    name: str
    kind: FindingKind
    message: str
    """One line that starts with the picture's name."""


def inspect_images(place: str, size: int | tuple[int, int]) -> list[Finding]:
    """Remarks on pictures that are unreadable, of doubtful colour, smaller than `size` (H, W), longer than 2:1, or repeated, in that order.

    Raises UserError where the place is missing or holds no pictures.
    """
    height, width = (size, size) if isinstance(size, int) else size
    findings: list[Finding] = []
    names: list[str] = []
    contents: list[str] = []
    perceptual: list[int | None] = []
    files = 0
    for picture in pictures(place):
        files += 1
        name = picture.name
        try:
            read = decoded(picture)
        except UnreadableImageError as error:
            findings.append(Finding(name, "unreadable", f"{name}: cannot be read ({error}); a whole PNG, JPEG or WebP file is right"))
            continue
        image = read.image
        if read.note:
            findings.append(Finding(name, "colour", f"{name}: {read.note}"))
        findings += _shape_findings(name, image, height, width)
        names.append(name)
        contents.append(content_hash(image))
        perceptual.append(perceptual_hash(image))
    refuse_unreadable(place, [], files)
    return findings + _repeats(names, contents, perceptual)


def _shape_findings(name: str, image: Image.Image, height: int, width: int) -> list[Finding]:
    findings = []
    if image.width < width or image.height < height:
        message = f"{name}: {image.width}x{image.height} is smaller than the model's {width}x{height}; it is enlarged, which blurs it"
        findings.append(Finding(name, "tiny", message))
    if max(image.size) > ODD_ASPECT * min(image.size):
        message = f"{name}: {image.width}x{image.height} is longer than {ODD_ASPECT:g}:1; only its middle is used"
        findings.append(Finding(name, "aspect", message))
    return findings


def _repeats(names: list[str], contents: list[str], perceptual: list[int | None]) -> list[Finding]:
    """At most one finding a picture: the first earlier one with the same pixels, else the nearest earlier one that looks the same."""
    findings = []
    first: dict[str, str] = {}
    hashed = [index for index, value in enumerate(perceptual) if value is not None]
    hashes = np.array([perceptual[index] for index in hashed], dtype=np.uint64)
    for index, (name, content) in enumerate(zip(names, contents, strict=True)):
        if content in first:
            findings.append(Finding(name, "duplicate", f"{name}: is the same picture as {first[content]}; it counts once"))
            continue
        first[content] = name
        own, earlier = perceptual[index], hashes[: bisect_left(hashed, index)]
        if own is None or len(earlier) == 0:
            continue
        bits = np.bitwise_count(earlier ^ np.uint64(own))
        nearest = int(bits.argmin())
        if bits[nearest] <= SIMILAR_BITS:
            message = (
                f"{name}: looks the same as {names[hashed[nearest]]} ({bits[nearest]} of 64 bits of their perceptual hashes differ); "
                "remove one, or a held-out picture may be one that was trained on"
            )
            findings.append(Finding(name, "duplicate", message))
    return findings
