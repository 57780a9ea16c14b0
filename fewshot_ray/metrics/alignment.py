"""How near an adapted model's samples stay to the source model's from the same noise."""

from torch import Tensor

from fewshot_ray.metrics.diversity import unit_features
from fewshot_ray.metrics.perceptual import PerceptualDistance


def alignment(source_features: Tensor, adapted_features: Tensor) -> float:
    """Mean Euclidean distance between the L2-normalised features [N, D] of the two samples of each noise, in [0, 2]; 0 for equal ones.

    A deterministic sampler maps a noise to a pair of images, as in dual diffusion implicit bridges (Su et al. 2023).
    Raises ValueError where the two sets aren't of one shape, or are empty.
    """
    if source_features.shape != adapted_features.shape or len(source_features) == 0:
        raise ValueError(
            f"features {tuple(source_features.shape)} and {tuple(adapted_features.shape)}: two sets of one shape are right, a pair a noise"
        )
    return float((unit_features(source_features) - unit_features(adapted_features)).norm(dim=1).mean())


def alignment_lpips(source: Tensor, adapted: Tensor, perceptual: PerceptualDistance) -> float:
    """Mean LPIPS between the two samples of each noise, uint8 [N, C, H, W]."""
    return float(perceptual.distance(source, adapted).double().mean())
