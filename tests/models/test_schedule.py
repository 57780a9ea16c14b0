import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from fewshot_ray.models.schedule import NoiseSchedule
from tests.tiny_diffusion import images, normal

BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)
ALL_T = torch.arange(1000)


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule(DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear").alphas_cumprod)


def test_alpha_bar_and_snr_against_numpy(schedule: NoiseSchedule) -> None:
    """Oracle: the linear schedule of DDPM in NumPy float64."""
    assert schedule.timesteps == 1000
    assert schedule.alpha_bar(ALL_T).shape == (1000, 1, 1, 1)
    np.testing.assert_allclose(schedule.alpha_bar(ALL_T).flatten(), ALPHA_BAR, rtol=2e-4)
    np.testing.assert_allclose(schedule.snr(ALL_T), ALPHA_BAR / (1 - ALPHA_BAR), rtol=1e-3)


def test_add_noise_against_diffusers_and_numpy(schedule: NoiseSchedule) -> None:
    """Oracles: diffusers' `DDPMScheduler.add_noise`, and Eq. 4 of DDPM in NumPy float64."""
    x_0, eps, t = images(5), normal(5), torch.tensor([0, 1, 250, 998, 999])
    x_t = schedule.add_noise(x_0, eps, t)
    torch.testing.assert_close(x_t, DDPMScheduler().add_noise(x_0, eps, t))
    alpha_bar = ALPHA_BAR[t.numpy()][:, None, None, None]
    expected = np.sqrt(alpha_bar) * x_0.double().numpy() + np.sqrt(1 - alpha_bar) * eps.double().numpy()
    np.testing.assert_allclose(x_t, expected, atol=2e-5)


def test_sigma_hat_against_numpy_and_the_posterior(schedule: NoiseSchedule) -> None:
    """Oracle: ANT's formula in NumPy float64, and what it stands for.

    A guided posterior mean is shifted by posterior variance * gradient; divided by eps's factor in that mean it is a shift of eps.
    """
    before = np.concatenate([[1.0], ALPHA_BAR[:-1]])
    sigma_hat = (1 - before) * np.sqrt((1 - BETA) / (1 - ALPHA_BAR))
    np.testing.assert_allclose(schedule.sigma_hat(ALL_T), sigma_hat, rtol=2e-3, atol=1e-6)
    posterior_variance = BETA * (1 - before) / (1 - ALPHA_BAR)
    mean_of_eps = BETA / np.sqrt((1 - ALPHA_BAR) * (1 - BETA))  # the factor of eps in the posterior mean
    np.testing.assert_allclose(sigma_hat, posterior_variance / mean_of_eps, rtol=1e-9)


def test_sigma_hat_in_numbers(schedule: NoiseSchedule) -> None:
    """Oracle: hand-derived: .167 and its square .028 at t = 50; 0 at t = 0; the authors' code within 2.1 % of the paper for t >= 250."""
    sigma_hat = schedule.sigma_hat(torch.tensor([0, 50]))
    assert sigma_hat[0] == 0
    assert sigma_hat[1].item() == pytest.approx(0.167, abs=5e-4)
    assert sigma_hat[1].item() ** 2 == pytest.approx(0.028, abs=5e-4)
    late = torch.arange(250, 1000)
    paper, code = schedule.sigma_hat(late) ** 2, 1 - schedule.alphas_cumprod[late]
    assert (code / paper - 1).abs().max() < 0.021
    early = torch.tensor([50])
    assert (1 - schedule.alphas_cumprod[early]) / schedule.sigma_hat(early) ** 2 - 1 > 0.05
