"""Losses by noise level, on schedules whose SNR falls in different ways."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fewshot_ray.metrics.noise_levels import band_values, sub_bands, weights
from fewshot_ray.models.schedule import NoiseSchedule
from fewshot_ray.spec.sections.evaluate import BAND_METRICS, BANDS

Array = NDArray[np.float64]
LOW = {"coarse": -2 * math.log(100), "content": -math.log(100), "cleanup": 0.0}


def bars(name: str) -> Array:
    """alpha_bar of 1,000 timesteps: DDPM's, Nichol & Dhariwal's cosine, and one that ends in noise alone."""
    if name == "cosine":
        t = np.arange(1001) / 1000
        cosine = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.asarray(np.cumprod(1 - np.minimum(1 - cosine[1:] / cosine[:-1], 0.999)))
    linear = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    if name == "linear":
        return np.asarray(linear)
    roots = np.sqrt(linear)
    return np.asarray(((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2)


def noisings(name: str, count: int = 400) -> tuple[Array, Array, Array]:
    """log SNR, losses and the other model's losses `[P]`, both of which depend on t."""
    random = np.random.default_rng(3)
    t = random.integers(0, 1000, count)
    bar = bars(name)[t]
    with np.errstate(divide="ignore"):
        log_snr = np.log(bar) - np.log1p(-bar)
    source = 0.02 + 1 / (1 + 0.01 * t) + 0.01 * random.random(count)
    return log_snr, source * random.uniform(0.5, 1.5, count), source


def relative(log_snr: Array, loss: Array, source: Array, low: float, sub_bands: int = 6) -> float:
    """Mean over sub-bands, of equal width in log SNR and open at the band's outer side, of the ratio of the mean losses there."""
    edges = [low + math.log(100) / 6 * edge for edge in range(sub_bands + 1)]
    if low < -5:
        edges[0] = -math.inf
    if low == 0:
        edges[-1] = math.inf
    ratios = []
    for a, b in pairwise(edges):
        inside = (log_snr >= a) & (log_snr < b)
        if inside.any():
            ratios.append(loss[inside].mean() / source[inside].mean())
    return float(np.mean(ratios))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "zero-snr"])
def test_bands_and_ratios(schedule: str) -> None:
    """Oracle: NumPy in float64 over the noisings chosen by SNR itself, not by sub-bands' numbers."""
    log_snr, loss, source = noisings(schedule)
    found = band_values(torch.from_numpy(loss), torch.from_numpy(log_snr), torch.from_numpy(source))
    snr = np.exp(log_snr)
    masks = {"coarse": snr < 0.01, "content": (snr >= 0.01) & (snr < 1), "cleanup": snr >= 1}
    expected = {f"loss_{band}": float(loss[mask].mean()) for band, mask in masks.items()}
    expected |= {f"relative_{band}": relative(log_snr, loss, source, LOW[band]) for band in BANDS}
    expected["relative_loss"] = relative(log_snr, loss, source, LOW["content"], 9)
    assert found == pytest.approx(expected, rel=1e-12)
    assert list(found) == list(BAND_METRICS)


def test_the_metrics_are_linear_in_the_losses() -> None:
    """Oracle: the sum of the fixed weights times other losses, by hand the metric of those; the source's own is 1."""
    log_snr, loss, source = map(torch.from_numpy, noisings("cosine"))
    for metric in BAND_METRICS:
        weight = weights(metric, log_snr, source)
        assert weight is not None
        for one in (loss, 3 * loss + 1):
            assert band_values(one, log_snr, source)[metric] == pytest.approx(float((weight * one).sum()), rel=1e-12)
    assert [band_values(source, log_snr, source)[f"relative_{band}"] for band in BANDS] == pytest.approx([1, 1, 1], rel=1e-12)


def test_the_edges_are_those_of_the_signal_to_noise_ratio() -> None:
    """Oracle: by hand; SNR .01 begins `content` and 1 `cleanup`, and the outermost sub-bands take whatever is beyond."""
    snr = torch.tensor([0.0, 1e-9, 0.0099, 0.01, 0.99, 1.0, 1e9, math.inf], dtype=torch.float64)
    assert sub_bands(snr.log()).tolist() == [0, 0, 5, 6, 11, 12, 17, 17]


def test_a_band_without_noisings_isnt_measured_and_a_sub_band_without_is_left_out() -> None:
    """Oracle: by hand, two noisings in the content band's first and last sub-band."""
    log_snr, loss, source = torch.tensor([-4.6, -0.1]), torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0])
    expected = {"loss_content": 2.0, "relative_content": (0.5 + 1.5) / 2, "relative_loss": (0.5 + 1.5) / 2}
    assert band_values(loss, log_snr, source) == pytest.approx(expected)
    assert band_values(loss, log_snr) == {"loss_content": 2.0}
    assert band_values(loss, log_snr, torch.tensor([2.0, 0.0]))["relative_content"] == 0.5


def test_the_schedule_gives_the_log_snr() -> None:
    """Oracle: NumPy, in float64 where 1 - alpha_bar is 1e-4; -inf where nothing of x_0 is left."""
    schedule, t = NoiseSchedule(torch.from_numpy(bars("zero-snr"))), torch.tensor([0, 500, 999])
    found: Any = schedule.log_snr(t)
    bar = bars("zero-snr")[[0, 500]]
    assert found.dtype == torch.float64
    assert found[:2].tolist() == pytest.approx((np.log(bar) - np.log1p(-bar)).tolist(), rel=1e-12)
    assert found[2] == -math.inf
