"""Frechet and kernel distance."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from fewshot_ray.metrics import fidelity
from fewshot_ray.metrics.fidelity import clip_distance, frechet_distance, inception_score, kernel_distance


def normal(rows: int, columns: int, seed: int, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    """Correlated normal features [rows, columns] float32."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=torch.Generator().manual_seed(99))
    return scale * torch.randn(rows, columns, generator=generator) @ mixing / columns**0.5 + shift


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 16), (40, 300, 8), (64, 64, 64)])
def test_frechet_distance_is_that_of_scipys_square_root(n: int, m: int, d: int) -> None:
    """Oracle: SciPy's sqrtm of the product of NumPy's covariances, float64."""
    x, y = normal(n, d, 0).numpy().astype(np.float64), normal(m, d, 1, scale=1.5, shift=0.3).numpy().astype(np.float64)
    S_x, S_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(S_x @ S_y).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(S_x + S_y - 2 * root)
    tolerance = 1e-9 if min(n, m) > d else 1e-5  # sqrtm of a singular product is good to the root of the machine's precision
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=tolerance)


def test_frechet_distance_of_few_images_is_that_of_the_eigenvalues() -> None:
    """Oracle: the roots of NumPy's eigenvalues of S_x S_y, at ten reals in 32 dimensions (singular covariances)."""
    x, y = normal(100, 32, 2).double().numpy(), normal(10, 32, 3).double().numpy()
    S_x, S_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    eigenvalues = np.linalg.eigvals(S_x @ S_y).real.clip(0)
    largest = np.sort(eigenvalues)[-9:]  # the rank of S_y
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(S_x) + np.trace(S_y) - 2 * np.sqrt(largest).sum()
    assert frechet_distance(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_in_one_dimension() -> None:
    """Oracle: by hand, (mu_x - mu_y)^2 + (s_x - s_y)^2 with means 1 and 4, variances 2 and 8."""
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [6.0]])
    assert frechet_distance(x, y) == pytest.approx(9 + (math.sqrt(2) - math.sqrt(8)) ** 2)


def test_frechet_distance_to_itself_is_nought_and_a_shift_counts_squared() -> None:
    """Oracle: the definition's limiting cases, at any rank."""
    for n in (2, 5, 200):
        x = normal(n, 16, 4)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
        assert frechet_distance(x, x.double() + 0.5) == pytest.approx(16 * 0.25, rel=1e-6)


def kernel_distance_by_loops(x: Tensor, y: Tensor) -> float:
    """The U-statistic, a pair at a time."""
    n, m, d = len(x), len(y), x.shape[1]

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / d + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(x[i], y[j]) for i in range(n) for j in range(m)) / (n * m)
    return xx + yy - 2 * xy


@pytest.mark.parametrize(("n", "m"), [(2, 2), (2, 5), (9, 4)])
def test_kernel_distance_is_that_of_loops(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: brute-force loops in float64, with blocks smaller than the set."""
    monkeypatch.setattr(fidelity, "ROWS_AT_ONCE", 3)
    x, y = normal(n, 6, 5).double(), normal(m, 6, 6, shift=0.5).double()
    assert kernel_distance(x, y).value == pytest.approx(kernel_distance_by_loops(x, y), rel=1e-10)


def test_kernel_distance_is_torchmetrics_own() -> None:
    """Oracle: torchmetrics' poly_mmd, with which its KernelInceptionDistance works."""
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(50, 12, 7).double(), normal(50, 12, 8, shift=0.2).double()
    assert kernel_distance(x, y).value == pytest.approx(float(poly_mmd(x, y)), rel=1e-9)


def test_jackknife_error_is_that_of_leaving_out() -> None:
    """Oracle: brute force, the whole statistic computed anew without each image."""
    x, y = normal(6, 5, 9).double(), normal(4, 5, 10).double()
    variance = 0.0
    for side, n in ((0, 6), (1, 4)):
        values = []
        for i in range(n):
            kept = [j for j in range(n) if j != i]
            values.append(kernel_distance_by_loops(x[kept], y) if side == 0 else kernel_distance_by_loops(x, y[kept]))
        variance += (n - 1) / n * float(np.square(np.array(values) - np.mean(values)).sum())
    assert kernel_distance(x, y).stderr == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_kernel_distance_is_unbiased_at_ten_images() -> None:
    """Oracle: identical distributions have distance 0: the mean of 200 draws lies within 4 standard errors, which the jackknife matches."""
    draws = [kernel_distance(normal(50, 8, 1000 + seed), normal(10, 8, 2000 + seed)) for seed in range(200)]
    values = np.array([draw.value for draw in draws])
    spread = values.std(ddof=1)
    assert abs(values.mean()) < 4 * spread / math.sqrt(len(values))
    assert spread / 2 < np.mean([draw.stderr for draw in draws]) < 2 * spread


def test_two_images_have_a_value_without_an_error() -> None:
    """Oracle: the jackknife leaves one of two images, of which there are no pairs."""
    distance = kernel_distance(normal(10, 4, 11), normal(2, 4, 12))
    assert math.isfinite(distance.value)
    assert math.isnan(distance.stderr)


@pytest.mark.parametrize(("x", "y"), [((1, 4), (5, 4)), ((5, 4), (5, 3)), ((5,), (5, 4))])
def test_features_that_are_not_two_sets_are_refused(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    """Oracle: the message names both shapes."""
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match="two sets"):
            distance(torch.zeros(x), torch.zeros(y))


def test_clip_distance_is_that_of_loops() -> None:
    """Oracle: the definition by loops in NumPy, pairs of an image with itself included as in the authors' code."""
    x, y = (rows.double() / rows.double().norm(dim=1, keepdim=True) for rows in (normal(9, 5, 20), normal(4, 5, 21, shift=0.5)))

    def mean_kernel(a: Tensor, b: Tensor) -> float:
        return float(np.mean([[math.exp(-float((u - v).square().sum()) / 200) for v in b] for u in a]))

    expected = 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))
    assert clip_distance(x, y) == pytest.approx(expected, rel=1e-8)


def test_clip_distance_at_its_ends() -> None:
    """Oracle: equal sets are at 0; two points d apart, each of one image repeated, at 2,000 (1 - exp(-d^2 / 200))."""
    x = normal(7, 4, 22)
    assert clip_distance(x, x) == pytest.approx(0, abs=1e-9)
    a, b = torch.tensor([[1.0, 0.0]]).repeat(3, 1), torch.tensor([[0.0, 1.0]]).repeat(5, 1)
    assert clip_distance(a, b) == pytest.approx(2000 * (1 - math.exp(-2 / 200)), rel=1e-9)


def test_inception_score_at_its_ends() -> None:
    """Oracle: closed forms: 1 for images that are all alike or say nothing; K where K classes come equally and surely."""
    assert inception_score(torch.zeros(50, 7)).value == pytest.approx(1)
    assert inception_score(normal(1, 7, 23).repeat(50, 1)).value == pytest.approx(1)
    sure = 1000 * torch.eye(5).repeat(20, 1)
    score = inception_score(sure)
    assert score.value == pytest.approx(5)
    assert score.std == pytest.approx(0, abs=1e-6)
    assert inception_score(sure, splits=1).value == pytest.approx(5)


def test_inception_score_is_that_of_loops() -> None:
    """Oracle: the definition in NumPy over runs of 37 / 10 images."""
    logits = normal(37, 6, 24).double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    runs = [p[i * 37 // 10 : (i + 1) * 37 // 10] for i in range(10)]
    scores = [math.exp(np.mean([sum(row * np.log(row / run.mean(0))) for row in run])) for run in runs]
    found = inception_score(torch.from_numpy(logits))
    assert found.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert found.std == pytest.approx(np.std(scores), rel=1e-9)
    with pytest.raises(ValueError, match="9 images make no 10 splits"):
        inception_score(torch.zeros(9, 4))
