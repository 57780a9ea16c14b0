"""The share memorised, MiFID, FLD: closed forms, and what each says about copies and fresh draws."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.data.digits import digits
from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_extractor
from fewshot_ray.metrics.fidelity import frechet_distance
from fewshot_ray.metrics.likelihood import feature_likelihood
from fewshot_ray.metrics.memorisation import memorisation_informed_distance, memorised_share


def test_share_threshold_and_ratio_by_hand() -> None:
    """Oracle: angles on the unit circle; an angle a has the chord 2 sin(a / 2); the held-out are at .1, .2 and .4 rad."""
    angles = torch.tensor([0.0, 0.05, 0.09, 0.11, 0.3], dtype=torch.float64)
    training = torch.tensor([[5.0, 0.0]])
    holdout_angles = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
    found = memorised_share(
        torch.stack([angles.cos(), angles.sin()], 1), training, 3 * torch.stack([holdout_angles.cos(), holdout_angles.sin()], 1)
    )
    usual = 2 * torch.sin(torch.tensor(0.1, dtype=torch.float64)).item()
    assert found.threshold == pytest.approx(usual / 2)
    assert found.share == pytest.approx(3 / 5)
    assert found.median_ratio == pytest.approx(2 * torch.sin(torch.tensor(0.045, dtype=torch.float64)).item() / usual)


def test_copies_are_all_memorised_and_real_digits_hardly() -> None:
    """Oracle: what the pictures are; mean over six splits of the share of real, unseen test digits at most .05, of copies 1."""
    extractor = load_extractor("digits", device="cpu")
    shares = []
    for seed in range(6):
        shots, validation, test = (extractor.features(digits(part, seed).images) for part in ("shots", "validation", "test"))
        assert memorised_share(shots.repeat(3, 1), shots, validation).share == 1
        real = memorised_share(test, shots, validation)
        assert real.median_ratio == pytest.approx(1, abs=0.1)
        shares.append(real.share)
    assert sum(shares) / 6 <= 0.05


def test_faint_noise_on_a_copy_does_not_hide_it() -> None:
    """Oracle: what the pictures are; copies with noise of 4 grey levels of 255."""
    extractor = load_extractor("digits", device="cpu")
    shots, validation = digits("shots").images, digits("validation").images
    noise = 4 * torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    noisy = (shots + noise).round().clamp(0, 255).to(torch.uint8)
    assert memorised_share(*(extractor.features(images) for images in (noisy, shots, validation))).share == 1


def test_held_out_copies_of_the_shots_are_refused() -> None:
    """Oracle: no distance is below half of nought."""
    shots = torch.eye(4)
    with pytest.raises(UserError, match="held-out"):
        memorised_share(torch.ones(3, 4), shots, shots)


def test_mifid_by_hand() -> None:
    """Oracle: the Frechet distance; cosine distances .02 and .08 to the nearest training image have mean .05, .2 and .2 are above .1."""
    training = torch.tensor([[1.0, 0.0]])
    reference = torch.tensor([[0.0, 1.0], [0.5, 2.0], [1.0, 1.0]])
    for cosines, penalty in (((0.98, -0.92), 0.05), ((0.8, 0.8), 1.0)):
        generated = torch.tensor([[cosine, (1 - cosine**2) ** 0.5] for cosine in cosines])
        expected = frechet_distance(generated, reference) / penalty
        assert memorisation_informed_distance(generated, training, reference) == pytest.approx(expected, rel=1e-5)


def test_mifid_is_torchmetrics_own() -> None:
    """Oracle: torchmetrics' function, with the two sets exchanged: it averages over the real images, Bai et al. over the samples."""
    from torchmetrics.image.mifid import _compute_cosine_distance

    generator = torch.Generator().manual_seed(0)
    training = torch.rand(6, 8, generator=generator, dtype=torch.float64) + 1
    generated = torch.rand(40, 8, generator=generator, dtype=torch.float64) + 1
    distance = float(_compute_cosine_distance(generated, training))
    assert 0 < distance < 0.1
    found = memorisation_informed_distance(generated, training, training)
    assert found == pytest.approx(frechet_distance(generated, training) / distance, rel=1e-9)


def likelihood_by_loops(generated: np.ndarray, training: np.ndarray, holdout: np.ndarray) -> tuple[float, float]:
    """The definition in NumPy: gradients by hand, Adam written out."""
    mean, std = holdout.mean(0), holdout.std(0, ddof=1)
    generated, training, holdout = ((rows - mean) / std for rows in (generated, training, holdout))
    D = training.shape[1]

    def density(x: np.ndarray, centre: np.ndarray, log_variance: float, factor: float = 1.0) -> float:
        return -0.5 * factor * float(((x - centre) ** 2).sum()) / math.exp(log_variance) - D / 2 * (log_variance + math.log(2 * math.pi))

    def fitted(centres: np.ndarray, images: np.ndarray) -> np.ndarray:
        n = len(centres)
        squared = ((images[:, None] - centres) ** 2).sum(2)
        from_mean = 0.81 * ((images - images.mean(0)) ** 2).sum(1)
        theta = np.append(np.log((squared.min(0) + 1e-3) / D), 0.0)
        first, second = np.zeros_like(theta), np.zeros_like(theta)
        for step in range(1, 51):
            gradient = np.zeros_like(theta)
            for i in range(len(images)):
                terms = [
                    -0.5 * squared[i, j] / math.exp(theta[j]) - D / 2 * (theta[j] + math.log(2 * math.pi)) - math.log(n) for j in range(n)
                ]
                terms.append(-0.5 * from_mean[i] / math.exp(theta[n]) - D / 2 * (theta[n] + math.log(2 * math.pi)))
                shares = np.exp(np.array(terms) - np.logaddexp.reduce(terms))
                distances = np.append(squared[i], from_mean[i])
                gradient -= shares * (0.5 * distances / np.exp(theta) - D / 2) / len(images) / D
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            theta = theta - 0.5 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            theta[:n] = theta[:n].clip(-40, 20)
        return theta[:n]

    def nll(images: np.ndarray, centres: np.ndarray, thetas: np.ndarray) -> float:
        each = [
            np.logaddexp.reduce([density(x, centre, theta) for centre, theta in zip(centres, thetas, strict=True)]) - math.log(len(centres))
            for x in images
        ]
        return -float(np.mean(each)) / D

    thetas = fitted(generated, training)
    half = len(training) // 2
    baseline = nll(holdout, training[:half], fitted(training[:half], training[half:]))
    return 100 * (nll(holdout, generated, thetas) - baseline), 100 * (nll(training, generated, thetas) - nll(holdout, generated, thetas))


def test_feature_likelihood_is_that_of_loops() -> None:
    """Oracle: loops in NumPy with Adam written out."""
    draw = np.random.default_rng(0)
    sets = draw.normal(0.3, 1.2, (9, 3)), draw.normal(size=(5, 3)), draw.normal(size=(7, 3))
    found = feature_likelihood(*(torch.from_numpy(rows) for rows in sets))
    expected = likelihood_by_loops(*sets)
    assert found.divergence == pytest.approx(expected[0], rel=1e-6)
    assert found.gap == pytest.approx(expected[1], rel=1e-6)


def test_feature_likelihood_of_features_that_do_not_vary() -> None:
    """Oracle: the stated rule: a constant feature is left unscaled, so it changes distances by nothing where it is the same everywhere."""
    sets = [torch.cat([torch.randn(n, 4, generator=torch.Generator().manual_seed(n)), torch.ones(n, 1)], 1) for n in (20, 10, 12)]
    assert all(math.isfinite(value) for value in feature_likelihood(*sets))
    with pytest.raises(UserError, match="over 1 training images"):
        feature_likelihood(sets[0], sets[1][:1], sets[2])


def penalty_against_holdout(generated: Tensor, training: Tensor, holdout: Tensor) -> float:
    """MiFID over the Frechet distance, relative to that of the held-out images themselves: their cosine distances are below .1 too here."""
    of_holdout = memorisation_informed_distance(holdout, training, training) / frechet_distance(holdout, training)
    return memorisation_informed_distance(generated, training, holdout) / frechet_distance(generated, holdout) / of_holdout


FLAGS: dict[str, Callable[[Tensor, Tensor, Tensor], bool]] = {
    "memorisation": lambda *sets: memorised_share(*sets).share > 0.2,
    "memorisation_ratio": lambda *sets: memorised_share(*sets).median_ratio < 0.5,
    "mifid": lambda *sets: penalty_against_holdout(*sets) > 10,
    "fld": lambda *sets: feature_likelihood(*sets).divergence > 100,
    "fld_gap": lambda *sets: feature_likelihood(*sets).gap < -100,
}


@pytest.fixture(scope="module")
def splits() -> list[tuple[Tensor, ...]]:
    """Features over six splits: shots, validation images; shots twenty times, the same with faint noise, and 200 unseen real digits."""
    features, found = load_extractor("digits", device="cpu").features, []
    for seed in range(6):
        shots, validation, test = (digits(part, seed).images for part in ("shots", "validation", "test"))
        copies = shots.repeat(20, 1, 1, 1)
        noise = 4 * torch.randn(copies.shape, generator=torch.Generator().manual_seed(seed))
        noisy = (copies + noise).round().clamp(0, 255).to(torch.uint8)
        found.append(tuple(features(images) for images in (shots, validation, copies, noisy, test[:200])))
    return found


@pytest.mark.parametrize("name", FLAGS)
def test_copies_are_flagged_and_a_fresh_draw_of_reals_is_not(name: str, splits: list[tuple[Tensor, ...]]) -> None:
    """Oracle: what the pictures are."""
    for shots, validation, *drawn in splits:
        assert [FLAGS[name](generated, shots, validation) for generated in drawn] == [True, True, False]
