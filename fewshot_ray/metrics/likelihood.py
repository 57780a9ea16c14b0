"""Feature likelihood divergence: the likelihood of real images under Gaussians around the generated ones."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.diversity import euclidean_distances

EPOCHS = 50
LEARNING_RATE = 0.5
LOG_VARIANCES = (-40.0, 20.0)
ORIGIN_SHARE = 0.1


class FeatureLikelihood(NamedTuple):
    """`divergence` of held-out images, lower is better; `gap` of training and held-out ones: far below 0 where the former are copied."""

    divergence: float
    gap: float


def feature_likelihood(generated: Tensor, training: Tensor, holdout: Tensor) -> FeatureLikelihood:
    """FLD and its generalisation gap (Jiralerspong et al. 2023, Eq. 3 and 4), from features [N, D], of training and held-out images N >= 2.

    Around each generated image stands a Gaussian, whose variances are fitted to the training images; a sample that copies one
    gets a tiny variance, which no held-out image profits from. With NLL in nats over D, `divergence` is 100 times the NLL of the held-out
    images over that of a baseline (Gaussians around half of the training images, fitted to the other half), `gap` is 100 (NLL of
    the training images - NLL of the held-out ones). Features are standardised by the held-out images.

    As the authors' code, with three differences: the baseline's halves are in the images' order, features that don't vary over the held-out
    images aren't scaled, and it is computed in float64. Raises UserError for fewer than two images of a kind.
    """
    for name, images in (("training", training), ("held-out", holdout)):
        if len(images) < 2:
            raise UserError(f"evaluate.metrics: fld and fld_gap over {len(images)} {name} images; two or more are right")
    mean, std = holdout.double().mean(0), holdout.double().std(0)
    std = std.where(std > 0, 1.0)
    generated, training, holdout = ((features.double() - mean) / std for features in (generated, training, holdout))
    variances = _fitted_log_variances(generated, training)
    of_training, of_holdout = (_nll(features, generated, variances) for features in (training, holdout))
    first, second = training.tensor_split([len(training) // 2])
    baseline = _nll(holdout, first, _fitted_log_variances(first, second))
    return FeatureLikelihood(100 * (of_holdout - baseline), 100 * (of_training - of_holdout))


@torch.enable_grad()
def _fitted_log_variances(centres: Tensor, images: Tensor) -> Tensor:
    """log sigma_j^2 [n] of the Gaussians around centres [n, D] that maximise the likelihood of images [m, D], by 50 steps of Adam.

    A Gaussian about the images' mean stands beside them, so that each image has some likelihood from the start.
    """
    squared = euclidean_distances(images, centres).square()
    D = images.shape[1]
    variances = ((squared.amin(0) + 1e-3) / D).log().requires_grad_()
    origin = torch.zeros((), dtype=torch.float64, device=images.device, requires_grad=True)
    from_mean = (1 - ORIGIN_SHARE) ** 2 * (images - images.mean(0)).square().sum(1, keepdim=True)
    optimizer = torch.optim.Adam([variances, origin], lr=LEARNING_RATE)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        around = _log_densities(squared, variances, D) - math.log(len(centres))
        loss = -torch.logsumexp(torch.cat([around, _log_densities(from_mean, origin, D)], 1), 1).mean() / D
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            variances.clamp_(*LOG_VARIANCES)
    return variances.detach()


def _log_densities(squared: Tensor, log_variances: Tensor, D: int) -> Tensor:
    """log N(x_i; mu_j, sigma_j^2 I) from squared distances [m, n]."""
    return -0.5 * squared / log_variances.exp() - D / 2 * (log_variances + math.log(2 * math.pi))


def _nll(images: Tensor, centres: Tensor, log_variances: Tensor) -> float:
    """Mean of -log p(x) / D over images [m, D], under equally many parts of each Gaussian."""
    D = images.shape[1]
    densities = _log_densities(euclidean_distances(images, centres).square(), log_variances, D)
    return float(-(torch.logsumexp(densities, 1) - math.log(len(centres))).mean()) / D
