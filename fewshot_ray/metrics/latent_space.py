"""How evenly images change along straight lines through a generator's latent space."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

INTERVALS = 10
PATHS_AT_ONCE = 16


@dataclass(frozen=True)
class PathUniformity:
    """Statistics of perceptual path lengths: a generator of few distinct images jumps from one to the next, which raises `std`."""

    mean: float
    """Mean length of a sub-interval, over sub-intervals and paths."""
    std: float
    """Standard deviation over a path's sub-intervals (n - 1 in the denominator), averaged over paths."""
    end: float
    """Distance between a path's two ends, averaged over paths."""


def path_uniformity(
    starts: Tensor,
    ends: Tensor,
    draw: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    intervals: int = INTERVALS,
) -> PathUniformity:
    """MixDL's variant of the perceptual path length (Kong et al. 2022, section 4.4, and its authors' code).

    `starts` and `ends` are codes [N, D]; `draw` makes images [n, C, H, W] of codes [n, D], always with the same noise; `distance` maps
    pairs of images to [n]. On each path `intervals` + 1 codes are equally far apart (a linear interpolation); all distances are
    divided by the square of the sub-interval's length, 1 / intervals, since the distance grows with the square of the step.
    Raises ValueError without a path or with fewer than two intervals.
    """
    if len(starts) == 0 or intervals < 2:
        raise ValueError(f"{len(starts)} paths of {intervals} intervals; at least one of two is right")
    lengths, whole = [], []
    for first, last in zip(starts.split(PATHS_AT_ONCE), ends.split(PATHS_AT_ONCE), strict=True):
        share = torch.linspace(0, 1, intervals + 1, device=first.device)[None, :, None]
        codes = first[:, None] + share * (last - first)[:, None]
        images = draw(codes.flatten(0, 1)).unflatten(0, (len(first), intervals + 1))
        between = distance(images[:, :-1].flatten(0, 1), images[:, 1:].flatten(0, 1))
        lengths.append(between.unflatten(0, (len(first), intervals)).double() * intervals**2)
        whole.append(distance(images[:, 0], images[:, -1]).double() * intervals**2)
    length, end = torch.cat(lengths), torch.cat(whole)
    return PathUniformity(float(length.mean()), float(length.std(dim=1).mean()), float(end.mean()))


def modes(distances_to_train: Tensor) -> int:
    """How many training images are the nearest one of some sample, by distances [N_gen, N_train]; on ties the first."""
    nearest = (distances_to_train == distances_to_train.amin(1, keepdim=True)).to(torch.uint8).argmax(1)
    return len(nearest.unique())
