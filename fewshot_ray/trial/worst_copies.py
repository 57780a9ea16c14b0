"""The generated images that come nearest to an image trained on, beside that image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fewshot_ray.data.target import Fold
from fewshot_ray.metrics.diversity import euclidean_distances, unit_features
from fewshot_ray.trial.grid import grid_png


@dataclass(frozen=True)
class Copy:
    """A generated image and the image trained on that is nearest to it."""

    generated: str
    training: str
    distance: float
    """Euclidean, between L2-normalised features."""
    ratio: float | None
    """The distance over the usual one of real images; about 1 for an image as new as those, 0 for a copy, below 0.5 counted as one."""


@dataclass(frozen=True)
class Copies:
    """The nearest ones, the nearest first."""

    copies: tuple[Copy, ...]
    usual: str
    """The distance that ratios are over, in words."""
    pairs: Tensor
    """uint8 `[2 n, C, H, W]`: the generated images, then those trained on in the same order."""

    def png(self) -> bytes:
        """A strip: generated images above, under each the image trained on."""
        return grid_png(self.pairs, columns=len(self.copies))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"ratio_over": self.usual, "worst": [asdict(copy) for copy in self.copies]}


def worst_copies(images: Tensor, names: Sequence[str], fold: Fold, features: Sequence[Tensor], *, most: int) -> Copies:
    """At most `most`, of generated images `[N, C, H, W]`; `features` are of these, of the images trained on, and of those held out.

    The usual distance is the median one of held-out images to their nearest image trained on; without any, of images trained on to
    their nearest other one; without two of these there is none.
    """
    generated, train, holdout = (unit_features(one) if len(one) else one for one in features)
    distances = euclidean_distances(generated, train)
    nearest = distances.min(1)
    # Features of equal images differ in their last digits, by the batch that they were computed in.
    worst = sorted(range(len(images)), key=lambda index: (round(float(nearest.values[index]), 6), names[index]))[:most]
    usual, words = _usual(train, holdout)
    originals = [int((distances[index] == nearest.values[index]).nonzero()[0]) for index in worst]
    copies = [
        Copy(
            names[index], fold.train.names[original], float(nearest.values[index]), float(nearest.values[index]) / usual if usual else None
        )
        for index, original in zip(worst, originals, strict=True)
    ]
    return Copies(tuple(copies), words, torch.cat([images[worst], fold.train.images[originals]]))


def _usual(train: Tensor, holdout: Tensor) -> tuple[float | None, str]:
    if len(holdout):
        return float(euclidean_distances(holdout, train).amin(1).quantile(0.5)), "median distance of held-out images"
    if len(train) < 2:
        return None, "nothing: one image trained on, none held out"
    between = euclidean_distances(train, train).fill_diagonal_(float("inf"))
    return float(between.amin(1).quantile(0.5)), "median distance of images trained on to their nearest other one"
