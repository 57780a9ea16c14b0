"""Fidelity and diversity as separate numbers: precision and recall, density and coverage, over k-nearest-neighbour balls."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot_ray.metrics.diversity import ROWS_AT_ONCE

NEAR = 1e-4
"""Share of the squared norms below which a distance is computed by differences: of the products' digits too few would be left."""
PAIRS_AT_ONCE = 4096
TIE = 1e-9
"""Relative: an image at a ball's rim is in it, be its distance rounded up or down."""


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
    blocks = [distances(rows, features).kthvalue(k + 1, dim=1).values for rows in features.split(ROWS_AT_ONCE)]
    return torch.cat(blocks)


def manifold(generated: Tensor, real: Tensor, *, k: int = 3) -> Manifold:
    """The four values from features [N, D] and [M, D], N and M > k; k = 3 in Kynkaanniemi et al., 5 in Naeem et al."""
    generated, real = generated.double(), real.double()
    real_radii, generated_radii = radii(real, k), radii(generated, k)
    inside = _inside(generated, real, real_radii)
    recalled = _inside(real, generated, generated_radii).any(1)
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
    return torch.cat([distances(rows, real) <= real_radii * (1 + TIE) for rows in generated.split(ROWS_AT_ONCE)])


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean ones of all pairs of rows of x [N, D] and y [M, D], float64, [N, M]: by products, which is ten times as fast as by
    differences; near pairs by differences, so that equal rows are at exactly 0.
    """
    sums = x.square().sum(1)[:, None] + y.square().sum(1)
    squared = sums - 2 * (x @ y.T)
    for pairs in (squared <= NEAR * sums).nonzero().split(PAIRS_AT_ONCE):
        i, j = pairs.T
        squared[i, j] = (x[i] - y[j]).square().sum(1)
    return squared.sqrt()
