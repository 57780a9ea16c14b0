"""The adversarial losses and their regularisers, one value per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class AdversarialLoss(Protocol):
    """Losses `[b]` from logits `[b, P]` (one per image, or one per patch): the mean over the patches."""

    def real(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The discriminator's loss on real images; `uniform` `[b]` in [0, 1) is what a loss may draw from."""
        ...

    def fake(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """The discriminator's loss on generated images; `uniform` as in `real`."""
        ...

    def generator(self, logits: Tensor) -> Tensor:
        """The generator's loss, from the logits of its images."""
        ...


class NonSaturating:
    """`softplus(-D(x)) + softplus(D(G(z)))` and `softplus(-D(G(z)))` (Goodfellow et al. 2014; StyleGAN2's)."""

    def real(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """`softplus(-D(x))` `[b]`; `uniform` isn't used."""
        return F.softplus(-logits).flatten(1).mean(dim=1)

    def fake(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """`softplus(D(G(z)))` `[b]`; `uniform` isn't used."""
        return F.softplus(logits).flatten(1).mean(dim=1)

    def generator(self, logits: Tensor) -> Tensor:
        """`softplus(-D(G(z)))` `[b]`."""
        return F.softplus(-logits).flatten(1).mean(dim=1)


class Hinge:
    """`relu(m - D(x)) + relu(m + D(G(z)))` and `-D(G(z))`, the margin m drawn from U(.8, 1) for each image (FastGAN's)."""

    def real(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """`relu(m - D(x))` `[b]`; `uniform` `[b]` in [0, 1) gives the margins m."""
        return F.relu(margin(uniform) - logits.flatten(1)).mean(dim=1)

    def fake(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """`relu(m + D(G(z)))` `[b]`; `uniform` `[b]` in [0, 1) gives the margins m."""
        return F.relu(margin(uniform) + logits.flatten(1)).mean(dim=1)

    def generator(self, logits: Tensor) -> Tensor:
        """`-D(G(z))` `[b]`."""
        return -logits.flatten(1).mean(dim=1)


def margin(uniform: Tensor) -> Tensor:
    """Hinge margins `[b, 1]` in [.8, 1) from `uniform` `[b]` in [0, 1)."""
    return (0.8 + 0.2 * uniform)[:, None]


def gradient_penalty(images: Tensor, judge: Callable[[Tensor], Tensor]) -> Tensor:
    """R1 (Mescheder et al. 2018): `||grad_x D(x)||^2` `[b]` of real images `[b, C, H, W]`, the sum over C, H, W.

    Where an image has several logits, their mean is differentiated. The penalty can be differentiated in D's weights.
    """
    x = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(judge(x).flatten(1).mean(dim=1).sum(), x, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3))


def path_lengths(image: Tensor, styles: Tensor, y: Tensor) -> Tensor:
    """`||J_w^T y||_2` `[b]` (Karras et al. 2020, Eq. 4): J the Jacobian of `image` `[b, C, H, W]` in `styles` `[b, L, D]`.

    `y` is standard normal, of the image's shape. The squares are averaged over the layers' styles, as in the authors' code.
    """
    height, width = image.shape[-2:]
    (gradient,) = torch.autograd.grad((image * y).sum() / math.sqrt(height * width), styles, create_graph=True)
    return gradient.float().square().sum(dim=2).mean(dim=1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor, decay: float, *, total: Tensor, count: Tensor) -> Tensor:
    """`(l_i - a)^2` `[b]` (Karras et al. 2020, Eq. 4), with a's own gradient: `a = (1 - decay) a_before + decay total / count`.

    `mean` is a, detached; `total` and `count` are the sum and the number of all workers' lengths. As in the authors' code the step's
    lengths are in a's graph; with a as a constant the gradient's norm is .7 to .9 % off.
    """
    residuals = total - count * mean  # the sum over all workers' lengths: d (sum of squares) / d a = -2 residuals
    through_mean = -2 * residuals * decay / count
    return (lengths - mean).square() + through_mean * (lengths - lengths.detach())
