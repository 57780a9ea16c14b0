"""Denoising losses by noise level: bands of the signal-to-noise ratio, and the losses relative to another model's at the same noisings.

The bands are the three stages of P2 weighting (Choi et al. 2022, "Perception Prioritized Training of Diffusion Models"): `coarse` where
SNR < .01, `content` from .01 to 1, `cleanup` above 1. Each is cut into SUB_BANDS of the same width in log SNR, of which the outermost two
are open, so the bands are the same on every noise schedule. `relative_loss` goes over the content band and the half of `cleanup` up to
an SNR of 10: what a model does with less noise than that it hardly had to learn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fewshot_ray.spec.sections.evaluate import BAND_METRICS, BANDS, LOSS_OF, RELATIVE_LOSS

SUB_BANDS = 6
"""Sub-bands of a band."""
WIDTH = math.log(100) / SUB_BANDS
"""The width of a sub-band in log SNR, a third of a decade."""
SUB_BANDS_OF = {
    **{f"relative_{band}": range(SUB_BANDS * index, SUB_BANDS * (index + 1)) for index, band in enumerate(BANDS)},
    RELATIVE_LOSS: range(SUB_BANDS, 5 * SUB_BANDS // 2),
}
"""The sub-bands of each relative metric."""


def sub_bands(log_snr: Tensor) -> Tensor:
    """The sub-band of each log SNR `[P]`, in [0, 3 * SUB_BANDS) from the noisiest: the first SUB_BANDS are `coarse`, and so on."""
    edges = torch.tensor([WIDTH * edge for edge in range(1 - 2 * SUB_BANDS, SUB_BANDS)], dtype=torch.float64)
    return torch.bucketize(log_snr.double(), edges, right=True)


def weights(metric: str, log_snr: Tensor, source: Tensor | None = None) -> Tensor | None:
    """The weights w `[P]` in float64 by which `metric` is the sum of w times the losses; None where it isn't defined.

    `loss_content` is the mean over the noisings in the band. `relative_content` is the mean over the sub-bands of the mean loss there over
    the mean of `source`, the losses `[P]` of another model at the same noisings: with S sub-bands, w = 1 / (S n_b source_b) in sub-band b.
    A sub-band without a noising, or where `source` is 0, is left out. Undefined are a band without any, and a relative metric without
    `source`.
    """
    found = sub_bands(log_snr)
    if (band := LOSS_OF.get(metric)) is not None:
        inside = found // SUB_BANDS == BANDS.index(band)
        return inside.double() / inside.sum() if inside.any() else None
    if source is None:
        return None
    result, shown = torch.zeros(len(found), dtype=torch.float64), 0
    for sub_band in SUB_BANDS_OF[metric]:
        inside = found == sub_band
        total = float(source.double()[inside].sum())
        if total != 0:
            result[inside] = 1 / total
            shown += 1
    return result / shown if shown else None


def band_values(loss: Tensor, log_snr: Tensor, source: Tensor | None = None) -> Mapping[str, float]:
    """The metrics of this module of losses `[P]`, those that are defined."""
    found = {name: weights(name, log_snr, source) for name in BAND_METRICS}
    return {name: float((weight * loss.double()).sum()) for name, weight in found.items() if weight is not None}
