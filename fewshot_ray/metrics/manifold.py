"""Fidelity and diversity as separate numbers: precision and recall, density and coverage, over k-nearest-neighbour balls."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_ray.metrics.diversity import ROWS_AT_ONCE, euclidean_distances


@dataclass(frozen=True)
class Manifold:
    """Values of generated images against real ones; each in [0, 1] except density, which may be larger."""

    precision: float
    """Share of generated images within the real ones' manifold (Kynkaanniemi et al. 2019, Eq. 2)."""
    recall: float
    """Share of real images within the generated ones' manifold."""
    density: float
    """Mean number of real balls around a generated image, over k (Naeem et al. 2020, Eq. 3)."""
    coverage: float
    """Share of real images with a generated one in their ball (Naeem et al. 2020, Eq. 4)."""


def radii(features: Tensor, k: int) -> Tensor:
    """Distance of each row of features [N, D] to its k-th nearest other row, [N]. Raises ValueError for N <= k."""
    if len(features) <= k:
        raise ValueError(f"{len(features)} images have no {k}-th nearest neighbour; more than {k} are right")
    blocks = [euclidean_distances(rows, features).kthvalue(k + 1, dim=1).values for rows in features.split(ROWS_AT_ONCE)]
    return torch.cat(blocks)


def manifold(generated: Tensor, real: Tensor, *, k: int = 3) -> Manifold:
    """The four values from features [N, D] and [M, D], N and M > k; k = 3 in Kynkaanniemi et al., 5 in Naeem et al."""
    generated, real = generated.double(), real.double()
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    inside = _inside(generated, real, real_radii)
    recalled = torch.cat([(euclidean_distances(rows, generated) <= generated_radii).any(1) for rows in real.split(ROWS_AT_ONCE)])
    return Manifold(
        precision=float(inside.any(1).double().mean()),
        recall=float(recalled.double().mean()),
        density=float(inside.double().sum(1).mean()) / k,
        coverage=float(inside.any(0).double().mean()),
    )


def real_balls_around(generated: Tensor, real: Tensor, *, k: int) -> Tensor:
    """Whether each generated image of features [N, D] is in each real one's ball, of features [M, D]: bool [N, M]."""
    generated, real = generated.double(), real.double()
    return _inside(generated, real, radii(real, k))


def _inside(generated: Tensor, real: Tensor, real_radii: Tensor) -> Tensor:
    return torch.cat([euclidean_distances(rows, real) <= real_radii for rows in generated.split(ROWS_AT_ONCE)])
