"""The noise schedule as tensors: alpha_bar and the quantities derived from it."""

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
        alpha_bar_before = self._alpha_bar_before(t)
        alpha = alpha_bar / alpha_bar_before
        return (1 - alpha_bar_before) * torch.sqrt(alpha / (1 - alpha_bar))

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`x_t` `[B, C, H, W]`."""
        alpha_bar = self.alpha_bar(t)
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps

    def eps(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise between x_0 and x_t, `[B, C, H, W]`."""
        alpha_bar = self.alpha_bar(t)
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean of `q(x_{t-1} | x_t, x_0)` (DDPM, Eq. 7), `[B, C, H, W]`; x_0 itself at t = 0."""
        alpha_bar, before = self.alphas_cumprod[t], self._alpha_bar_before(t)
        alpha = alpha_bar / before
        of_x_0 = before.sqrt() * (1 - alpha) / (1 - alpha_bar)
        of_x_t = alpha.sqrt() * (1 - before) / (1 - alpha_bar)
        return of_x_0.view(-1, 1, 1, 1) * x_0 + of_x_t.view(-1, 1, 1, 1) * x_t

    def log_variances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of beta_t and of the posterior's variance (DDPM, Eq. 7; at t = 0 the value of t = 1), `[B, 1, 1, 1]` each."""
        late = t.clamp(min=1)
        alpha_bar, before = self.alphas_cumprod[late], self._alpha_bar_before(late)
        posterior = (1 - alpha_bar / before) * (1 - before) / (1 - alpha_bar)
        beta = 1 - self.alphas_cumprod[t] / self._alpha_bar_before(t)
        return beta.log().view(-1, 1, 1, 1), posterior.log().view(-1, 1, 1, 1)

    def _alpha_bar_before(self, t: Tensor) -> Tensor:
        """`alpha_bar_{t-1}`, 1 before t = 0."""
        earlier = self.alphas_cumprod[(t - 1).clamp(min=0)]
        return torch.where(t > 0, earlier, torch.ones_like(earlier))
