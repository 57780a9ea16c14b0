"""Pairwise and intra-cluster diversity."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.metrics import diversity
from fewshot_ray.metrics.diversity import euclidean_distances, intra_cluster_diversity, mean_pairwise_distance, unit_features, vendi_score


def points(rows: int, seed: int) -> Tensor:
    """Normal features [rows, 5] float64."""
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mean_pairwise_distance_is_that_of_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the mean over itertools' pairs, with blocks smaller than the set."""
    monkeypatch.setattr(diversity, "ROWS_AT_ONCE", 4)
    x = points(11, 0)
    pairs = [float((a - b).norm()) for a, b in itertools.combinations(x, 2)]
    assert mean_pairwise_distance(x) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


def test_copies_have_no_diversity_and_single_samples_no_pairs() -> None:
    """Oracle: the definition's limiting cases."""
    assert mean_pairwise_distance(points(1, 1).repeat(7, 1)) == 0
    with pytest.raises(ValueError, match="two or more"):
        mean_pairwise_distance(points(1, 1))


def test_unit_features_do_not_know_the_scale() -> None:
    """Oracle: opposite vectors of any length lie 2 apart, right angles the root of 2."""
    unit = unit_features(torch.tensor([[3.0, 0.0], [-0.1, 0.0], [0.0, 7.0]]))
    distances = euclidean_distances(unit, unit)
    assert distances[0].tolist() == pytest.approx([0, 2, 2**0.5])


def intra_by_loops(samples: Tensor, training: Tensor, cap: int) -> tuple[float, list[int]]:
    """The protocol, an image at a time."""
    clusters: list[list[Tensor]] = [[] for _ in training]
    for sample in samples:
        distances = [float((sample - image).norm()) for image in training]
        clusters[distances.index(min(distances))].append(sample)
    means = []
    for cluster in clusters:
        pairs = [float((a - b).norm()) for a, b in itertools.combinations(cluster[:cap], 2)]
        if pairs:
            means.append(sum(pairs) / len(pairs))
    return sum(means) / len(means), [len(cluster) for cluster in clusters]


@pytest.mark.parametrize("cap", [2, 5, 50])
def test_intra_cluster_diversity_is_that_of_loops(cap: int) -> None:
    """Oracle: brute-force loops over Python lists; list.index takes the lowest index on ties."""
    samples, training = points(40, 2), torch.cat([points(6, 3), points(6, 3)[:1], points(1, 4) + 100])
    expected, sizes = intra_by_loops(samples, training, cap)
    assert sizes[6] == 0  # the second copy of the first training image loses every tie
    assert sizes[7] == 0
    found = intra_cluster_diversity(
        euclidean_distances(samples, training), lambda members: euclidean_distances(samples[members], samples[members]), cap=cap
    )
    assert found.value == pytest.approx(expected, rel=1e-12)
    assert list(found.cluster_sizes) == sizes
    assert found.occupancy == pytest.approx(sum(size > 0 for size in sizes) / 8)


def test_only_the_first_fifty_of_a_cluster_count() -> None:
    """Oracle: by hand, 50 equal samples followed by ten others far away have diversity 0."""
    samples = torch.cat([torch.zeros(50, 5), 10 + points(10, 5).float()])
    found = intra_cluster_diversity(torch.ones(60, 1), lambda members: euclidean_distances(samples[members], samples[members]))
    assert found.value == 0
    assert found.cluster_sizes == (60,)


def test_clusters_of_none_and_one_are_dropped() -> None:
    """Oracle: by hand, clusters of 2, 1 and 0 with the pair 3 apart."""
    samples = torch.tensor([[0.0], [3.0], [50.0]])
    to_train = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    found = intra_cluster_diversity(to_train, lambda members: euclidean_distances(samples[members], samples[members]))
    assert found.value == 3
    assert found.occupancy == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no cluster of two"):
        intra_cluster_diversity(to_train[1:], lambda members: torch.zeros(len(members), len(members)))


def test_vendi_score_counts_what_differs() -> None:
    """Oracle: closed forms: n for n at right angles, 1 for copies, and in between the root that two unequal shares give."""
    assert vendi_score(3 * torch.eye(6)) == pytest.approx(6)
    assert vendi_score(points(1, 5).repeat(9, 1)) == pytest.approx(1)
    assert vendi_score(torch.tensor([[1.0, 0.0]])) == pytest.approx(1)
    three_to_one = torch.tensor([[1.0, 0], [2, 0], [3, 0], [0, 1]])
    assert vendi_score(three_to_one) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


@pytest.mark.parametrize("rows", [4, 30])
def test_vendi_score_is_that_of_the_similarities(rows: int) -> None:
    """Oracle: NumPy's eigenvalues of the matrix of cosine similarities over n, with fewer and more images than features."""
    x = points(rows, 6).numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    shares = np.linalg.eigvalsh(unit @ unit.T / rows)
    shares = shares[shares > 1e-12]
    assert vendi_score(torch.from_numpy(x)) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
