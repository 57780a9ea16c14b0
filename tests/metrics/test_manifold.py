import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from fewshot_ray.metrics.manifold import distances, manifold


def features(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn((count, 6), generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("k", [3, 5])
def test_precision_and_recall_against_torch_fidelity(k: int) -> None:
    """Oracle: torch-fidelity on the same features."""
    generated, real = features(120, 0, 0.7), features(90, 1)
    theirs = prc_features_to_metric(generated, real, prc_neighborhood=k, prc_batch_size=64, save_cpu_ram=False, verbose=False)
    ours = manifold(generated, real, k=k)
    assert ours.precision == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours.recall == pytest.approx(theirs["recall"], abs=1e-6)


def test_density_and_coverage_by_hand() -> None:
    """Oracle: on a line: reals at 0, 1, 2, 10 have balls of radius 2, 1, 2, 9 for k = 2; fakes lie in 3, 2 and 1 of them."""
    real, generated = torch.tensor([[0.0], [1], [2], [10]]), torch.tensor([[1.0], [3.5], [18.0]])
    found = manifold(torch.cat([generated]), real, k=2)
    # 1.0 is in the balls of 0, 1, 2 and (distance 9) 10; 3.5 in those of 2 and 10; 18 in that of 10.
    assert found.density == pytest.approx((4 + 2 + 1) / 3 / 2)
    assert found.coverage == 1.0
    assert found.precision == 1.0


def test_copies_have_full_precision_and_few_images_little_recall() -> None:
    """Oracle: the definitions at their ends: reals repeated lie in the manifold; five distinct images leave most reals out."""
    real = features(60, 0)
    found = manifold(real[:5].repeat(12, 1) + 1e-9 * features(60, 1), real)
    assert found.precision == 1.0
    assert found.recall < 0.2


def test_too_few_images_are_refused() -> None:
    """Oracle: the stated rule."""
    with pytest.raises(ValueError, match="3 images have no 3-th nearest neighbour"):
        manifold(features(9, 0), features(3, 1))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_distances_by_products_are_those_by_differences(offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: differences; rows far from the origin, of whose products no digit says how far apart they are, and equal rows."""
    monkeypatch.setattr("fewshot_ray.metrics.manifold.PAIRS_AT_ONCE", 7)
    x, y = features(30, 0).double() + offset, features(20, 1).double() + offset
    y[3] = x[5]
    y[4] = x[5] + 1e-7
    exact = (x[:, None] - y).square().sum(2).sqrt()
    found = distances(x, y)
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=0)
    assert found[5, 3] == 0


def test_an_image_at_the_rim_of_a_ball_is_in_it() -> None:
    """Oracle: the definition with "not farther than": generated images that are the real ones themselves have each k + 1 balls or more."""
    real = features(300, 2)
    found = manifold(real[torch.randperm(300, generator=torch.Generator().manual_seed(0))], real, k=3)
    radius = torch.cdist(real.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist").kthvalue(4, dim=1).values
    within = torch.cdist(real.double(), real.double(), compute_mode="donot_use_mm_for_euclid_dist") <= radius
    assert found.density == pytest.approx(float(within.double().sum(1).mean()) / 3, rel=1e-12)
    assert found.density == pytest.approx(4 / 3)
