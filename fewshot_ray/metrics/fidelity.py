"""Distances between generated and real images in an extractor's features (Frechet, kernel, CMMD), and the Inception score.

Against few real images the Frechet distance rewards copying them (its floor for identical distributions is about 1.8 of a
ceiling of 2 per dimension at ten reals); the kernel distance is unbiased at any number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS_AT_ONCE = 1024
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
SCORE_SPLITS = 10


class KernelDistance(NamedTuple):
    """The squared MMD (may be slightly negative) and its jackknife standard error (nan with fewer than three images in a set)."""

    value: float
    stderr: float


def frechet_distance(x: Tensor, y: Tensor) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of the Gaussians fitted to x [N, D] and y [M, D]; N, M >= 2.

    Heusel et al. 2017, Eq. 6, with unbiased covariances. With S_x = A^T A and S_y = B^T B the eigenvalues of S_x S_y are the
    squared singular values of A B^T, so that the trace of the root is their plain sum: exact at ranks far below D (ten real
    images), where a matrix square root returns noise or complex numbers.
    """
    _check_features(x, y)
    x, y = x.double(), y.double()
    A, B = _covariance_factor(x), _covariance_factor(y)
    means = (x.mean(0) - y.mean(0)).square().sum()
    root_trace = torch.linalg.svdvals(A @ B.T).sum()
    distance = means + A.square().sum() + B.square().sum() - 2 * root_trace
    return max(0.0, float(distance))


def kernel_distance(x: Tensor, y: Tensor) -> KernelDistance:
    """Unbiased squared MMD with k(a, b) = (a.b / D + 1)^3 between x [N, D] and y [M, D]; N, M >= 2.

    Binkowski et al. 2018, Eq. 3: the full U-statistic over all pairs, no subsets. The standard error is the two-sample
    jackknife's: each image of either set left out once (a bootstrap would put duplicates off the diagonal).
    """
    _check_features(x, y)
    x, y = x.double(), y.double()
    n, m = len(x), len(y)
    within_x, within_y, across_x, across_y = _kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y), _kernel_sums(y, x)
    within_x, within_y = within_x - _kernel_diagonal(x), within_y - _kernel_diagonal(y)

    xx = within_x.sum() / (n * (n - 1))
    yy = within_y.sum() / (m * (m - 1))
    xy = across_x.sum() / (n * m)
    value = float(xx + yy - 2 * xy)
    if min(n, m) < 3:
        return KernelDistance(value, float("nan"))

    # Without image i, its row and column are missing from the sums within its set, and its row from those between the sets.
    xx_without = (within_x.sum() - 2 * within_x) / ((n - 1) * (n - 2))
    yy_without = (within_y.sum() - 2 * within_y) / ((m - 1) * (m - 2))
    x_left_out = xx_without + yy - 2 * (across_x.sum() - across_x) / ((n - 1) * m)
    y_left_out = xx + yy_without - 2 * (across_y.sum() - across_y) / (n * (m - 1))
    variance = _jackknife_variance(x_left_out) + _jackknife_variance(y_left_out)
    return KernelDistance(value, float(variance.sqrt()))


def clip_distance(x: Tensor, y: Tensor) -> float:
    """CMMD (Jayasumana et al. 2024, Eq. 2, 3): 1,000 times the squared MMD with exp(-|a - b|^2 / (2 10^2)) between embeddings x and y.

    As in the authors' code the estimate is the biased one, with each image's pair with itself (their Eq. 3 leaves these out): it
    is 0 for equal sets, and above 0 for different draws of one distribution, the more the fewer images there are.
    x is [N, D], y [M, D], of unit length; N, M >= 2.
    """
    _check_features(x, y)
    x, y = x.double(), y.double()

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        squared = (torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").square() for rows in torch.split(a, ROWS_AT_ONCE))
        return torch.cat([(-part / (2 * CMMD_SIGMA**2)).exp().mean(1) for part in squared]).mean()

    return CMMD_SCALE * float(mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


class InceptionScore(NamedTuple):
    """Mean and standard deviation (n in the denominator) over the splits."""

    value: float
    std: float


def inception_score(logits: Tensor, *, splits: int = SCORE_SPLITS) -> InceptionScore:
    """exp E_x KL(p(y|x) || p(y)) of the classes' logits [N, K] (Salimans et al. 2016): the mean over `splits` runs of successive images.

    By torch-fidelity, without its shuffling: samples come in the order of their numbers. It lies between 1 and the smaller of K and
    N / splits. Raises ValueError where a split would be empty.
    """
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} images make no {splits} splits; {splits} or more are right")
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    score = isc_features_to_metric(logits, splits=splits, shuffle=False)
    return InceptionScore(score[KEY_METRIC_ISC_MEAN], score[KEY_METRIC_ISC_STD])


def relative_distance(x: Tensor, source: Tensor, y: Tensor) -> float:
    """Mean of the Frechet and the kernel distance of x [N, D] to y [M, D], each over that of the source model's samples [N, D]; M, N >= 3.

    1 is the source's, below is nearer to y. The kernel distance of a source that is as near as its standard error counts as that error,
    and a negative one of x as 0. Raises ValueError where the source's samples have y's mean and covariance exactly.
    """
    frechet, of_source = frechet_distance(x, y), frechet_distance(source, y)
    kernel, kernel_of_source = kernel_distance(x, y), kernel_distance(source, y)
    if of_source == 0:
        raise ValueError("the source model's samples are the reference images; others are right")
    return (frechet / of_source + max(0.0, kernel.value) / max(kernel_of_source.value, kernel_of_source.stderr)) / 2


def _covariance_factor(x: Tensor) -> Tensor:
    """R [min(N, D), D] with R^T R = cov(x), from the QR decomposition of the centred rows."""
    centred: Tensor = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    factor: Tensor = torch.linalg.qr(centred, mode="r").R
    return factor


def _kernel_sums(x: Tensor, y: Tensor) -> Tensor:
    """sum_j k(x_i, y_j) [N], computed in blocks of rows: the whole Gram matrix is never in memory."""
    return torch.cat([(rows @ y.T / x.shape[1] + 1).pow(3).sum(1) for rows in torch.split(x, ROWS_AT_ONCE)])


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(1) / x.shape[1] + 1).pow(3)


def _jackknife_variance(left_out: Tensor) -> Tensor:
    n = len(left_out)
    return (n - 1) / n * (left_out - left_out.mean()).square().sum()


def _check_features(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"features {tuple(x.shape)} and {tuple(y.shape)}: two sets [N, D] and [M, D] with N, M >= 2 are right")
