"""The share memorised."""

import pytest
import torch

from fewshot_ray.data.digits import digits
from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_extractor
from fewshot_ray.metrics.memorisation import memorised_share


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
