"""How much of the generated images is copied: the share of copies by a threshold from held-out real images, and MiFID."""

from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.diversity import ROWS_AT_ONCE, euclidean_distances, unit_features
from fewshot_ray.metrics.fidelity import frechet_distance

COPY_RATIO = 0.5
MIFID_THRESHOLD = 0.1
"""Mean cosine distance to the nearest training image from which on nothing counts as copied; Kaggle's, for Inception's features."""
SMALLEST_PENALTY = 1e-14


class Memorisation(NamedTuple):
    """`share` of copies in [0, 1]; the distance `threshold` below which a sample is one; `median_ratio`: generated over held-out."""

    share: float
    threshold: float
    median_ratio: float


def memorised_share(generated: Tensor, training: Tensor, holdout: Tensor) -> Memorisation:
    """Share of samples whose distance to a training image is below half the median distance of held-out images.

    With d(x) the Euclidean distance between L2-normalised features of x and of its nearest training image, a sample is a copy
    when d(x) < 1/2 median over the held-out images of d; median_ratio is median d(generated) / median d(holdout): about 1 for
    samples as new as real ones, 0 for copies. All three are features [N, D]. Raises UserError where the median is 0, that is
    where most held-out images are training images.
    """
    unit_training = unit_features(training)
    generated_distances = _nearest_distances(generated, unit_training)
    usual = float(_nearest_distances(holdout, unit_training).quantile(0.5))
    if not usual > 0:
        raise UserError(
            "evaluate.metrics: memorisation isn't defined where held-out images equal the training images; other held-out images are right"
        )
    threshold = COPY_RATIO * usual
    share = float((generated_distances < threshold).double().mean())
    return Memorisation(share, threshold, float(generated_distances.quantile(0.5)) / usual)


def memorisation_informed_distance(generated: Tensor, training: Tensor, reference: Tensor) -> float:
    """MiFID (Bai et al. 2021): the Frechet distance to `reference` over the mean cosine distance to the nearest training image.

    With d(x) = min over training images y of 1 - |cos(x, y)|: the distance is divided by the mean d over the samples where that is
    below .1, and left as it is elsewhere. Bai et al. and Kaggle average over the samples, torchmetrics over the real images; the images
    whose copies count and those that the Frechet distance is to are one set there, and two here. All three are features [N, D].
    """
    units = [unit_features(rows[rows.abs().sum(1) != 0]) for rows in (generated, training)]
    nearest = torch.cat([(1 - (rows @ units[1].T).abs()).amin(1) for rows in units[0].split(ROWS_AT_ONCE)])
    mean = float(nearest.mean())
    distance = frechet_distance(generated, reference)
    return distance / max(mean, SMALLEST_PENALTY) if mean < MIFID_THRESHOLD else distance


def _nearest_distances(features: Tensor, unit_training: Tensor) -> Tensor:
    return euclidean_distances(unit_features(features), unit_training).amin(1)
