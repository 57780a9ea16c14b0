"""95 % intervals of metrics, where there is a sound one: a jackknife over images, or Wilson's for a share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from scipy.special import ndtri, stdtrit
from torch import Tensor

LEVEL = 0.95
GROUPS = 10
"""Groups of images that a jackknife leaves out in turn, where leaving out each image would take too long."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval."""

    low: float
    high: float
    method: str
    """How it was found, and what varies in it."""

    def to_json(self) -> dict[str, str | float]:
        """As a JSON object, with the level."""
        return {"level": LEVEL, **asdict(self)}


def wilson(share: float, count: int, of: str) -> Interval:
    """Wilson's (1927) interval for a share of `count` independent images; `of` names them. In [0, 1], also at a share of 0 or 1."""
    z = float(ndtri((1 + LEVEL) / 2))
    scale = 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    # Exactly 0 and 1 where the formula leaves a rounding error of them.
    return Interval(0.0 if share == 0 else middle - half, 1.0 if share == 1 else middle + half, f"Wilson, over {of}")


def of_error(value: float, stderr: float, freedom: int, method: str, *, least: float = -math.inf) -> Interval | None:
    """value -+ t stderr, no lower than `least`; None where the error is undefined."""
    if not math.isfinite(stderr) or freedom < 1:
        return None
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * stderr
    return Interval(max(least, value - half), value + half, method)


def of_mean(values: Tensor, of: str) -> Interval | None:
    """Student's interval for the mean of one value `[N]`, at least 0, an image; None for fewer than two."""
    if len(values) < 2:
        return None
    values = values.double()
    stderr = float(values.std()) / math.sqrt(len(values))
    return of_error(float(values.mean()), stderr, len(values) - 1, f"Student's t, over {of}", least=0.0)


def of_pairwise_mean(distances: Tensor) -> Interval | None:
    """The delete-one jackknife of the mean over all pairs of `distances` `[N, N]`, whose diagonal is 0; None for fewer than three."""
    n = len(distances)
    if n < 3:
        return None
    rows = distances.double().sum(1)
    total = rows.sum()
    left_out = (total - 2 * rows) / ((n - 1) * (n - 2))
    return of_error(float(total) / (n * (n - 1)), _error(left_out), n - 1, "jackknife over generated images", least=0.0)


def by_groups(value: float, statistic: Callable[[Tensor, Tensor], float], generated: Tensor, real: Tensor | None) -> Interval | None:
    """The jackknife of a statistic of two sets of images, which leaves out a group of either in turn; values are at least 0.

    `statistic` is handed the indices of the images that are kept, of the generated `[N, D]` and of the real ones `[M, D]`. Groups
    are the same whatever the images' order. With `real` None they are taken as they are. None with fewer than three images in a set,
    or where the statistic is undefined (ValueError) without one of the groups.
    """
    sets = [generated] if real is None else [generated, real]
    if min(len(images) for images in sets) < 3:
        return None
    keep = [torch.arange(len(images)) for images in (generated, torch.empty(0) if real is None else real)]
    variance = 0.0
    try:
        for side, images in enumerate(sets):
            left_out = []
            for group in _groups(images):
                kept = list(keep)
                kept[side] = group
                left_out.append(statistic(kept[0], kept[1]))
            variance += _error(torch.tensor(left_out, dtype=torch.float64)) ** 2
    except ValueError:
        return None
    over = "generated images" if real is None else "generated and held-out images"
    freedom = min(min(len(images), GROUPS) for images in sets) - 1
    return of_error(value, math.sqrt(variance), freedom, f"jackknife by groups of {over}", least=0.0)


def _groups(images: Tensor) -> list[Tensor]:
    """For each group the indices of the images that aren't in it; images come into groups by a hash of their content."""
    rows = images.contiguous().numpy()
    order = sorted(range(len(rows)), key=lambda index: hashlib.sha256(rows[index].tobytes()).digest())
    group = torch.empty(len(rows), dtype=torch.long)
    group[torch.tensor(order)] = torch.arange(len(rows)) % min(GROUPS, len(rows))
    return [torch.nonzero(group != number).flatten() for number in range(int(group.max()) + 1)]


def _error(left_out: Tensor) -> float:
    """The jackknife's standard error, of the values with each image or group left out."""
    n = len(left_out)
    return float(((n - 1) / n * (left_out - left_out.mean()).square().sum()).sqrt())
