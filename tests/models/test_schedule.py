from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from fewshot_ray.models.schedule import NoiseSchedule, alphas_cumprod
from tests.tiny_diffusion import images, normal

BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)
ALL_T = torch.arange(1000)
ONE_ROUNDING = 1.2e-7
"""Relative: float32's distance between neighbours."""


@pytest.fixture
def schedule() -> NoiseSchedule:
    return NoiseSchedule(alphas_cumprod(DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").config))


def test_alpha_bar_and_snr_against_numpy(schedule: NoiseSchedule) -> None:
    """Oracle: the linear schedule of DDPM in NumPy float64."""
    assert schedule.timesteps == 1000
    assert schedule.alpha_bar(ALL_T).shape == (1000, 1, 1, 1)
    np.testing.assert_allclose(schedule.alphas_cumprod, ALPHA_BAR, rtol=1e-13)
    np.testing.assert_allclose(schedule.alpha_bar(ALL_T).flatten(), ALPHA_BAR, rtol=ONE_ROUNDING)
    np.testing.assert_allclose(schedule.signal_scale(ALL_T).flatten(), np.sqrt(ALPHA_BAR), rtol=ONE_ROUNDING)
    np.testing.assert_allclose(schedule.noise_scale(ALL_T).flatten(), np.sqrt(1 - ALPHA_BAR), rtol=ONE_ROUNDING)
    np.testing.assert_allclose(schedule.noise_variance(ALL_T), 1 - ALPHA_BAR, rtol=ONE_ROUNDING)
    np.testing.assert_allclose(schedule.snr(ALL_T), ALPHA_BAR / (1 - ALPHA_BAR), rtol=ONE_ROUNDING)


def test_log_variances_against_numpy(schedule: NoiseSchedule) -> None:
    """Oracle: beta_t, and DDPM's Eq. 7 with the value of t = 1 at t = 0, in NumPy float64."""
    log_beta, log_posterior = schedule.log_variances(ALL_T)
    np.testing.assert_allclose(log_beta.flatten(), np.log(BETA), rtol=ONE_ROUNDING)
    variance = BETA[1:] * (1 - ALPHA_BAR[:-1]) / (1 - ALPHA_BAR[1:])
    np.testing.assert_allclose(log_posterior.flatten(), np.log(np.concatenate([variance[:1], variance])), rtol=ONE_ROUNDING)


@pytest.mark.parametrize(
    "settings",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "laplace", "num_train_timesteps": 50},
        {"beta_schedule": "sigmoid", "num_train_timesteps": 60},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 1},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 0, "beta_schedule": "squaredcos_cap_v2"},
    ],
)
def test_every_schedule_is_diffusers(settings: dict[str, Any]) -> None:
    """Oracle: `DDPMScheduler`'s own alpha_bar, to float32's rounding."""
    scheduler = DDPMScheduler(**settings)
    ours = alphas_cumprod(scheduler.config)
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours.float(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-6)


def test_add_noise_against_diffusers_and_numpy(schedule: NoiseSchedule) -> None:
    """Oracles: diffusers' `DDPMScheduler.add_noise`, and Eq. 4 of DDPM in NumPy float64."""
    x_0, eps, t = images(5), normal(5), torch.tensor([0, 1, 250, 998, 999])
    x_t = schedule.add_noise(x_0, eps, t)
    torch.testing.assert_close(x_t, DDPMScheduler().add_noise(x_0, eps, t), rtol=1e-4, atol=1e-4)
    alpha_bar = ALPHA_BAR[t.numpy()][:, None, None, None]
    expected = np.sqrt(alpha_bar) * x_0.double().numpy() + np.sqrt(1 - alpha_bar) * eps.double().numpy()
    np.testing.assert_allclose(x_t, expected, atol=5e-7)


def test_sigma_hat_against_numpy_and_the_posterior(schedule: NoiseSchedule) -> None:
    """Oracle: ANT's formula in NumPy float64, and what it stands for.

    A guided posterior mean is shifted by posterior variance * gradient; divided by eps's factor in that mean it is a shift of eps.
    """
    before = np.concatenate([[1.0], ALPHA_BAR[:-1]])
    sigma_hat = (1 - before) * np.sqrt((1 - BETA) / (1 - ALPHA_BAR))
    np.testing.assert_allclose(schedule.sigma_hat(ALL_T), sigma_hat, rtol=ONE_ROUNDING)
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
