"""The embedded digits benchmark: handwritten digits at 8x8 as source, slanted and thickened ones as target.

`bench/data/make_digits.py` makes them from scikit-learn's digits.
"""

from __future__ import annotations

import difflib
import hashlib
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from fewshot_ray.errors import UserError

DigitsPart = Literal["source", "target", "shots", "validation", "test", "biased-shots", "biased-validation", "biased-test"]
PARTS: tuple[str, ...] = get_args(DigitsPart)
VALIDATION_IMAGES = 200
CLASSES = 10
SEEN_CLASSES = 5
"""The biased shots are of the classes 0 to 4 alone."""


class Digits(NamedTuple):
    """Some of the benchmark's digits."""

    images: Tensor
    """uint8 [N, 1, 8, 8]; 0 is background, 255 full ink."""
    labels: Tensor
    """int64 [N], 0 .. 9."""


def digits(part: str, seed: int = 0) -> Digits:
    """One part of the benchmark.

    `source` (1,000) and `target` (797) are the two domains, whatever the seed. The seed splits the target into
    `shots` (10, one per class, in the order of the classes), `validation` (200) and `test` (the other 587).
    Or into shots that lack half of what the target has: `biased-shots` (10, two of each class 0 to 4), `biased-validation` (those images
    of `validation` that are of these classes) and `biased-test` (those of `test`, of all ten classes); neither contains a biased shot.
    Raises UserError where there is no such part.
    """
    if part not in PARTS:
        nearest = difflib.get_close_matches(part, PARTS, n=1, cutoff=0.0)[0]
        raise UserError(f"embedded digits: there is no part {part!r}; {', '.join(PARTS)} are right (did you mean {nearest}?)")
    domain = "source" if part == "source" else "target"
    images, labels = _domain(domain)
    indices = digit_indices(part, seed)
    return Digits(images[indices], labels[indices])


def digit_indices(part: str, seed: int = 0) -> list[int]:
    """The indices of the part within its domain, `source` or `target`."""
    images, labels = _domain("source" if part == "source" else "target")
    if part in ("source", "target"):
        return list(range(len(images)))
    order = sorted(range(len(images)), key=lambda index: _rank(seed, index))
    classes = labels.tolist()
    of_class = [[index for index in order if classes[index] == label] for label in range(CLASSES)]
    shots = [indices[0] for indices in of_class]
    rest = [index for index in order if index not in shots]
    parts = {"shots": shots, "validation": rest[:VALIDATION_IMAGES], "test": rest[VALIDATION_IMAGES:]}
    if not part.startswith("biased-"):
        return parts[part]
    biased = [index for indices in of_class[:SEEN_CLASSES] for index in indices[:2]]
    seen = range(SEEN_CLASSES if part == "biased-validation" else CLASSES)
    others = [index for index in parts[part.removeprefix("biased-")] if index not in biased and classes[index] in seen]
    return biased if part == "biased-shots" else others


def _rank(seed: int, index: int) -> str:
    # A hash, not a random generator: the split must be the same with all versions of all libraries.
    return hashlib.sha256(f"digits:{seed}:{index}".encode()).hexdigest()


@cache
def _domain(name: str) -> tuple[Tensor, Tensor]:
    content = files("fewshot_ray.data").joinpath("embedded", "digits.npz").read_bytes()
    with np.load(BytesIO(content), allow_pickle=False) as arrays:
        images = torch.from_numpy(arrays[name])[:, None]
        return images, torch.from_numpy(arrays[f"{name}_labels"]).long()
