"""How different generated images are from one another, over any distance: features or LPIPS."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CLUSTER_CAP_IMAGES = 50
ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class IntraClusterDiversity:
    """Mean within-cluster distance, over clusters; `occupancy` is the share of training images nearest to at least one sample."""

    value: float
    occupancy: float
    cluster_sizes: tuple[int, ...]  # one per training image, before the cap


def unit_features(features: Tensor) -> Tensor:
    """L2-normalised rows [N, D] float64: Euclidean distances between them lie in [0, 2] whatever the extractor's scale."""
    return torch.nn.functional.normalize(features.double(), dim=1)


def euclidean_distances(x: Tensor, y: Tensor) -> Tensor:
    """[N, M] from x [N, D] and y [M, D]; by differences, so that equal rows are at distance exactly 0."""
    distances: Tensor = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    return distances


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance over all pairs of different rows of features [N, D], N >= 2."""
    n = len(features)
    if n < 2:
        raise ValueError(f"{n} samples have no pairs; two or more are right")
    features = features.double()
    blocks = [euclidean_distances(rows, features).sum() for rows in torch.split(features, ROWS_AT_ONCE)]
    return float(torch.stack(blocks).sum()) / (n * (n - 1))


def vendi_score(features: Tensor) -> float:
    """The effective number of different images among features [N, D] (Friedman and Dieng 2023, Eq. 1): between 1 and N.

    exp of the entropy of the eigenvalues of K / N with the cosine similarities K, of features that aren't centred. With fewer
    features than images it is computed from X^T X / N, whose eigenvalues are the same but for zeros.
    """
    unit = unit_features(features)
    gram = unit.T @ unit if unit.shape[1] < len(unit) else unit @ unit.T
    shares = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return float(torch.special.entr(shares).sum().exp())


def intra_cluster_diversity(
    distances_to_train: Tensor, pairwise: Callable[[Tensor], Tensor], *, cap: int = CLUSTER_CAP_IMAGES
) -> IntraClusterDiversity:
    """The Intra-LPIPS protocol (Ojha et al. 2021) over any distance.

    Each sample goes to its nearest training image (the lowest index on ties) by distances_to_train [N_gen, N_train]; of each
    cluster the first `cap` samples count; `pairwise` gives the distances [n, n] among the samples of the indices [n] it is
    handed. The value is the mean over clusters of their mean pairwise distance; clusters of none or one are dropped.
    Raises ValueError where no cluster has two samples.
    """
    training_images = distances_to_train.shape[1]
    # argmin guarantees no order among ties, so the first column that attains the minimum is selected.
    nearest = (distances_to_train == distances_to_train.amin(1, keepdim=True)).to(torch.uint8).argmax(1)
    clusters = [torch.nonzero(nearest == i).flatten() for i in range(training_images)]
    sizes = tuple(len(members) for members in clusters)
    means = [_mean_off_diagonal(pairwise(members[:cap])) for members in clusters if len(members) >= 2]
    if not means:
        raise ValueError(f"{len(nearest)} samples over {training_images} training images leave no cluster of two")
    occupied = sum(size > 0 for size in sizes)
    return IntraClusterDiversity(sum(means) / len(means), occupied / training_images, sizes)


def _mean_off_diagonal(distances: Tensor) -> float:
    n = len(distances)
    distances = distances.double()
    return float(distances.sum() - distances.diagonal().sum()) / (n * (n - 1))
