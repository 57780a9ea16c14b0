"""The noise schedule in tensors: alpha_bar and what the methods derive from it."""

from __future__ import annotations

import torch
from torch import Tensor


class NoiseSchedule:
    """`x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps` for integer t in [0, T) (DDPM, Ho et al. 2020, Eq. 4).

    `alphas_cumprod` is `[T]`, decreasing, in (0, 1).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.alphas_cumprod = alphas_cumprod

    @property
    def timesteps(self) -> int:
        """T."""
        return self.alphas_cumprod.shape[0]

    def alpha_bar(self, t: Tensor) -> Tensor:
        """`alpha_bar_t` `[B, 1, 1, 1]` for t `[B]`."""
        return self.alphas_cumprod[t].view(-1, 1, 1, 1)

    def snr(self, t: Tensor) -> Tensor:
        """`SNR_t = alpha_bar_t / (1 - alpha_bar_t)`, `[B]`."""
        alpha_bar = self.alphas_cumprod[t]
        return alpha_bar / (1 - alpha_bar)

    def sigma_hat(self, t: Tensor) -> Tensor:
        """`(1 - alpha_bar_{t-1}) sqrt(alpha_t / (1 - alpha_bar_t))` (ANT, Eq. 5), `[B]`; zero at t = 0."""
        alpha_bar = self.alphas_cumprod[t]
        alpha_bar_before = torch.where(t > 0, self.alphas_cumprod[(t - 1).clamp(min=0)], torch.ones_like(alpha_bar))
        alpha = alpha_bar / alpha_bar_before
        return (1 - alpha_bar_before) * torch.sqrt(alpha / (1 - alpha_bar))

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`x_t` `[B, C, H, W]`."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
