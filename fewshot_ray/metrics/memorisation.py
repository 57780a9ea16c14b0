"""The share of generated images that are copies of training images, by a threshold from held-out real images."""

from typing import NamedTuple

from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.diversity import euclidean_distances, unit_features

COPY_RATIO = 0.5


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


def _nearest_distances(features: Tensor, unit_training: Tensor) -> Tensor:
    return euclidean_distances(unit_features(features), unit_training).amin(1)
