"""The variational bound that trains a learned variance (Nichol & Dhariwal 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewshot_ray.methods.draw import Draw

HALF_LEVEL = 1 / 255
"""Half the distance between neighbouring grey levels in [-1, 1]."""


def variational_bound(draw: Draw) -> Tensor:
    """`L_vlb` of each image at its t in bits per dimension, `[b]`: the KL divergence of posterior and model (Eq. 4 to 6).

    At t = 0 it is the decoder's negative log-likelihood, with the normal distribution function itself; the authors' code has a tanh
    approximation of it. The mean receives no gradient, as in the paper: the term trains the variance.
    """
    assert draw.output.variance is not None
    schedule, x_0_hat = draw.backbone.schedule, draw.x_0_hat.detach()
    mean = schedule.posterior_mean(x_0_hat, draw.x_t, draw.t)
    log_beta, log_beta_tilde = schedule.log_variances(draw.t)
    v = (draw.output.variance + 1) / 2
    log_variance = v * log_beta + (1 - v) * log_beta_tilde  # Eq. 15
    true_mean = schedule.posterior_mean(draw.x_0, draw.x_t, draw.t)
    kl = kl_of_normals(true_mean, log_beta_tilde, mean, log_variance)
    nats = torch.where((draw.t == 0).view(-1, 1, 1, 1), -log_likelihood(draw.x_0, mean, log_variance), kl)
    return nats.mean(dim=(1, 2, 3)) / math.log(2)


def kl_of_normals(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """`KL(N_1 || N_2)` in nats, element by element."""
    ratio = torch.exp(log_variance_1 - log_variance_2)
    return 0.5 * (log_variance_2 - log_variance_1 + ratio + (mean_1 - mean_2).square() * torch.exp(-log_variance_2) - 1)


def log_likelihood(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-likelihood of the 8-bit level of x_0, element by element: the normal's mass around it, open-ended at 0 and 255 (DDPM, Eq. 13)."""
    normal = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance), validate_args=False)  # the loop reports what isn't finite
    below, above = normal.cdf(x_0 - HALF_LEVEL), normal.cdf(x_0 + HALF_LEVEL)
    mass = torch.where(x_0 < -0.999, above, torch.where(x_0 > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()
