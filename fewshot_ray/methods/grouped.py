"""Groups of a batch's latents that are compared with each other; a group is never split between workers."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_ray.methods.precision import without_autocast


def by_group(x: Tensor, latents: int) -> Tensor:
    """`[b, ...]` as `[groups, N, ...]`: image i belongs to group `i mod (b / N)`.

    So a worker's `rank::workers` slice holds whole groups, the same groups for any number of workers that divides their number.
    """
    groups: Tensor = x.unflatten(0, (latents, -1)).transpose(0, 1)
    return groups


def ungroup(x: Tensor) -> Tensor:
    """The inverse of `by_group`: `[groups, N, ...]` to `[b, ...]`."""
    return x.transpose(0, 1).flatten(0, 1)


def of_group(x: Tensor, latents: int) -> Tensor:
    """The members of each image's group, `[b, N, ...]` from `[b, ...]`, in order."""
    groups = by_group(x, latents)
    return groups[torch.arange(len(x), device=x.device) % len(groups)]


def similarities(anchors: Tensor, others: Tensor, latents: int) -> Tensor:
    """Cosine similarities `[b, N]` of each anchor's activations `[b, ...]`, flattened, with those of its group's members.

    In float32 under autocast too: bfloat16 rounds similarities near 1 by up to .004, as much as they differ.
    """
    with without_autocast(anchors.device):
        a, o = (by_group(x.flatten(1).float(), latents) for x in (anchors, others))
        norms = a.norm(dim=2)[:, :, None] * o.norm(dim=2)[:, None, :]
        return ungroup((a @ o.transpose(1, 2)) / norms.clamp(min=1e-8))


def distances(x: Tensor, latents: int) -> Tensor:
    """Euclidean distances `[groups, N, N]` within the groups of `[b, ...]`, flattened; also differentiable at 0."""
    flat = by_group(x.flatten(1).float(), latents)
    difference = flat[:, :, None] - flat[:, None, :]
    return difference.square().sum(dim=3).clamp(min=1e-12).sqrt()


def others(matrix: Tensor) -> Tensor:
    """`[..., N, N - 1]`: each row of `[..., N, N]` without its entry on the diagonal.

    Without a mask: how many entries a mask chooses the host would have to ask a GPU.
    """
    count = matrix.shape[-1]
    # Without the first entry, rows of N + 1 end with an entry of the diagonal.
    shifted: Tensor = matrix.flatten(-2)[..., 1:].unflatten(-1, (count - 1, count + 1))
    off_diagonal: Tensor = shifted[..., :-1].flatten(-2).unflatten(-1, (count, count - 1))
    return off_diagonal
