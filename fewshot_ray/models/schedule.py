"""The noise schedule: alpha_bar in float64, and the quantities derived from it as tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor


def alphas_cumprod(config: Mapping[str, Any]) -> Tensor:
    """alpha_bar `[T]` in float64 of a `DDPMScheduler`'s configuration, by diffusers' definitions of its schedules.

    diffusers computes in float32, where 1 - alpha_bar has lost three of its digits at small t.
    """
    start, end, timesteps = config["beta_start"], config["beta_end"], config["num_train_timesteps"]
    if config["trained_betas"] is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64, device="cpu")
    elif config["beta_schedule"] == "linear":
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64, device="cpu")
    elif config["beta_schedule"] == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64, device="cpu") ** 2
    elif config["beta_schedule"] == "squaredcos_cap_v2":
        betas = _betas(lambda s: math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2, timesteps)
    elif config["beta_schedule"] == "laplace":
        betas = _betas(_laplace, timesteps)
    elif config["beta_schedule"] == "sigmoid":
        betas = torch.linspace(-6, 6, timesteps, dtype=torch.float64, device="cpu").sigmoid() * (end - start) + start
    else:
        raise ValueError(f"beta_schedule {config['beta_schedule']!r} isn't supported")
    bars = (1 - betas).cumprod(0)
    if config["rescale_betas_zero_snr"]:
        roots = bars.sqrt()
        bars = ((roots - roots[-1:]) * roots[:1] / (roots[:1] - roots[-1:])) ** 2
    return bars


def _betas(alpha_bar: Callable[[float], float], timesteps: int) -> Tensor:
    """beta `[T]` of a continuous alpha_bar(s), s = t / T in [0, 1], at most .999 (Nichol & Dhariwal 2021, Eq. 17)."""
    bars = [alpha_bar(t / max(timesteps, 1)) for t in range(timesteps + 1)]
    return torch.tensor([min(1 - after / before, 0.999) for before, after in pairwise(bars)], dtype=torch.float64, device="cpu")


def _laplace(s: float) -> float:
    """diffusers' "laplace"."""
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - s) * math.log(1 - 2 * abs(0.5 - s) + 1e-6))
    return math.sqrt(snr / (1 + snr))


class NoiseSchedule:
    """`x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps` for integer t in [0, T) (DDPM, Ho et al. 2020, Eq. 4).

    `alphas_cumprod` is `[T]`, decreasing, in (0, 1). What is derived from it is computed in float64 once and looked up in float32.
    """

    def __init__(self, alphas_cumprod: Tensor, device: torch.device | str = "cpu") -> None:
        self.alphas_cumprod = bar = alphas_cumprod.double().cpu()
        """`alpha_bar_t` `[T]` in float64, on the CPU."""
        before = torch.cat([torch.ones_like(bar[:1]), bar[:-1]])
        alpha = bar / before
        variance = (1 - alpha) * (1 - before) / (1 - bar)
        tables = {
            "alpha_bar": bar,
            "signal_scale": bar.sqrt(),
            "noise_scale": (1 - bar).sqrt(),
            "noise_variance": 1 - bar,
            "snr": bar / (1 - bar),
            "sigma_hat": (1 - before) * (alpha / (1 - bar)).sqrt(),
            "posterior_of_x_0": before.sqrt() * (1 - alpha) / (1 - bar),
            "posterior_of_x_t": alpha.sqrt() * (1 - before) / (1 - bar),
            "log_beta": (1 - alpha).log(),
            "log_posterior_variance": variance[torch.arange(len(bar), device="cpu").clamp(min=min(1, len(bar) - 1))].log(),
        }
        self._tables = {name: table.to(device, torch.float32) for name, table in tables.items()}

    @property
    def timesteps(self) -> int:
        """T."""
        return self.alphas_cumprod.shape[0]

    @property
    def device(self) -> torch.device:
        """Where t and what is looked up for it live."""
        return self._tables["alpha_bar"].device

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The schedule on another device."""
        return NoiseSchedule(self.alphas_cumprod, device)

    def alpha_bar(self, t: Tensor) -> Tensor:
        """`alpha_bar_t` `[B, 1, 1, 1]` for t `[B]`."""
        return self._factor("alpha_bar", t)

    def signal_scale(self, t: Tensor) -> Tensor:
        """`sqrt(alpha_bar_t)` `[B, 1, 1, 1]`: the factor of x_0 in x_t."""
        return self._factor("signal_scale", t)

    def noise_scale(self, t: Tensor) -> Tensor:
        """`sqrt(1 - alpha_bar_t)` `[B, 1, 1, 1]`: the factor of eps in x_t."""
        return self._factor("noise_scale", t)

    def noise_variance(self, t: Tensor) -> Tensor:
        """`1 - alpha_bar_t`, `[B]`."""
        return self._tables["noise_variance"][t]

    def snr(self, t: Tensor) -> Tensor:
        """`SNR_t = alpha_bar_t / (1 - alpha_bar_t)`, `[B]`."""
        return self._tables["snr"][t]

    def log_snr(self, t: Tensor) -> Tensor:
        """The natural logarithm of `SNR_t`, `[B]` in float64 on the CPU; -inf where x_t is noise alone (alpha_bar_t = 0)."""
        bar = self.alphas_cumprod[t.cpu().long()]
        return bar.log() - (-bar).log1p()

    def sigma_hat(self, t: Tensor) -> Tensor:
        """`(1 - alpha_bar_{t-1}) sqrt(alpha_t / (1 - alpha_bar_t))` (ANT, Eq. 5), `[B]`; zero at t = 0."""
        return self._tables["sigma_hat"][t]

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """`x_t` `[B, C, H, W]`."""
        return self.signal_scale(t) * x_0 + self.noise_scale(t) * eps

    def eps(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise between x_0 and x_t, `[B, C, H, W]`."""
        return (x_t - self.signal_scale(t) * x_0) / self.noise_scale(t)

    def posterior_mean(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean of `q(x_{t-1} | x_t, x_0)` (DDPM, Eq. 7), `[B, C, H, W]`; x_0 itself at t = 0."""
        return self._factor("posterior_of_x_0", t) * x_0 + self._factor("posterior_of_x_t", t) * x_t

    def log_variances(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The logs of beta_t and of the posterior's variance (DDPM, Eq. 7; at t = 0 the value of t = 1), `[B, 1, 1, 1]` each."""
        return self._factor("log_beta", t), self._factor("log_posterior_variance", t)

    def _factor(self, name: str, t: Tensor) -> Tensor:
        return self._tables[name][t].view(-1, 1, 1, 1)
