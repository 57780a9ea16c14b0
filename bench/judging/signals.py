"""What a model could be judged by with ten images (signals), and what it is worth by images nobody chose by (truths)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot_ray.metrics.diversity import euclidean_distances, unit_features
from fewshot_ray.metrics.fidelity import frechet_distance, kernel_distance
from fewshot_ray.metrics.manifold import manifold
from fewshot_ray.metrics.memorisation import memorised_share

Array = NDArray[np.float64]
FEW_SAMPLES = 64
"""Samples, for signals that cost less than all of a model's do."""
CONTENT, WIDE = (-2, 0), (-2, 1)
"""Decades of SNR: 0.01 .. 1, the content stage of Choi et al. 2022, and 0.01 .. 10."""
BANDS_PER_DECADE = 3
FEW_IMAGES = 3
"""Held-out images where few are kept back."""


@dataclass(frozen=True)
class Losses:
    """Denoising losses at fixed noisings `[P]`, and the source model's."""

    loss: Array
    source: Array
    log_snr: Array
    image: NDArray[np.int64]

    def mean(self) -> float:
        """Over all noisings."""
        return float(self.loss.mean())

    def relative(self, low: float, high: float) -> float:
        """Mean over sub-bands, three a decade of SNR, of the loss over the source's there; sub-bands without a noising are left out.

        `low` and `high` are powers of ten.
        """
        edges = np.linspace(low, high, round((high - low) * BANDS_PER_DECADE) + 1) * np.log(10.0)
        inside = [(self.log_snr >= a) & (self.log_snr < b) for a, b in pairwise(edges)]
        return float(np.mean([self.loss[one].mean() / self.source[one].mean() for one in inside if one.any()]))

    def of_images(self, images: int) -> Losses:
        """Those of the first images."""
        some = self.image < images
        return Losses(self.loss[some], self.source[some], self.log_snr[some], self.image[some])


def loss_signals(holdout: Losses, shots: Losses) -> dict[str, float]:
    """Signals that need no samples; less is better."""
    few = holdout.of_images(FEW_IMAGES)
    content = holdout.relative(*CONTENT)
    bands = {f"SNR 1e{low} .. 1e{low + 1}": holdout.relative(low, low + 1) for low in range(-4, 3)}
    return {
        "holdout_loss": holdout.mean(),
        "relative_loss": holdout.relative(*WIDE),
        "relative_content": content,
        "log ratio, all noisings": float(np.log(holdout.loss / holdout.source).mean()),
        "content, shots": shots.relative(*CONTENT),
        "content, held out over shots": content / shots.relative(*CONTENT),
        "holdout_loss, 3 images": few.mean(),
        "relative_loss, 3 images": few.relative(*WIDE),
        "relative_content, 3 images": few.relative(*CONTENT),
        **bands,
    }


def sample_signals(samples: Tensor, holdout: Tensor, shots: Tensor, number: int) -> dict[str, float]:
    """Signals of the first `number` samples' features [N, D]; less is better (diversities and shares are turned)."""
    some = samples[:number]
    near = manifold(some, holdout)
    return {
        f"{name}, {number}": value
        for name, value in {
            "fd": frechet_distance(some, holdout),
            "kid": kernel_distance(some, holdout).value,
            "fd, unit": frechet_distance(unit_features(some), unit_features(holdout)),
            "energy": energy_distance(some, holdout),
            "energy, unit": energy_distance(unit_features(some), unit_features(holdout)),
            "coverage, turned": -near.coverage,
            "density, turned": -near.density,
            "recall, turned": -near.recall,
            "memorisation": memorised_share(some, shots, holdout).share,
            "neighbour of own kind": own_neighbours(some, holdout),
        }.items()
    }


def few_image_signals(samples: Tensor, holdout: Tensor, shots: Tensor, number: int) -> dict[str, float]:
    """Those of `sample_signals` that are defined where only FEW_IMAGES are held out."""
    some, few = samples[:number], holdout[:FEW_IMAGES]
    return {
        f"fd, {number}, 3 images": frechet_distance(some, few),
        f"kid, {number}, 3 images": kernel_distance(some, few).value,
        f"memorisation, {number}, 3 images": memorised_share(some, shots, few).share,
    }


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over different pairs (Szekely & Rizzo 2013), of x [N, D] and y [M, D]."""
    x, y = x.double(), y.double()
    within = [euclidean_distances(one, one).sum() / (len(one) * (len(one) - 1)) for one in (x, y)]
    return float(2 * euclidean_distances(x, y).mean() - within[0] - within[1])


def own_neighbours(x: Tensor, y: Tensor) -> float:
    """Share of real images y whose nearest other image, of y and as many first x, is real: a two-sample test by neighbours."""
    both = torch.cat([y, x[: len(y)]]).double()
    distances = euclidean_distances(both, both).fill_diagonal_(torch.inf)
    return float((distances[: len(y)].argmin(1) < len(y)).double().mean())


def truths(samples: Tensor, test: Tensor, shots: Tensor, test_of_seen: Tensor) -> dict[str, float]:
    """What features [N, D] are worth by those of the test split [M, D].

    How near a copy is to a shot is judged by test images of the shots' classes: images of other classes are far from all shots.
    """
    near = manifold(samples, test)
    return {
        "kid": kernel_distance(samples, test).value,
        "fd": frechet_distance(samples, test),
        "coverage": near.coverage,
        "density": near.density,
        "recall": near.recall,
        "copied": memorised_share(samples, shots, test_of_seen).share,
    }
