import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import Draw
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.vlb import variational_bound
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.parameters import FullConfig, tune
from tests.tiny_diffusion import PREDICTION_TYPES, Formula, batch, draw, learned_backbone

BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([0.3 * x, 0.5 * torch.tanh(x)], dim=1)


def at(backbone: Backbone, t: list[int]) -> Draw:
    it = draw(backbone, network=Formula(network), count=len(t))
    it.t = torch.tensor(t)
    return it


def expected(it: Draw, i: int) -> float:
    """Bits a dimension of image i, from the papers' equations in NumPy float64."""
    t, x_0, x_t = int(it.t[i]), it.x_0[i].double().numpy(), it.x_t[i].double().numpy()
    before = ALPHA_BAR[t - 1] if t > 0 else 1.0
    prediction, v = 0.3 * x_t, (0.5 * np.tanh(x_t) + 1) / 2
    kind = it.backbone.prediction_type
    a, s = np.sqrt(ALPHA_BAR[t]), np.sqrt(1 - ALPHA_BAR[t])
    x_0_hat = {"epsilon": (x_t - s * prediction) / a, "sample": prediction, "v_prediction": a * x_t - s * prediction}[kind]

    def posterior(x: np.ndarray) -> np.ndarray:
        mean: np.ndarray = np.sqrt(before) * BETA[t] / (1 - ALPHA_BAR[t]) * x
        return mean + np.sqrt(1 - BETA[t]) * (1 - before) / (1 - ALPHA_BAR[t]) * x_t

    late = max(t, 1)
    beta_tilde = BETA[late] * (1 - ALPHA_BAR[late - 1]) / (1 - ALPHA_BAR[late])
    variance = np.exp(v * np.log(BETA[t]) + (1 - v) * np.log(beta_tilde))
    if t == 0:
        mean, std = posterior(x_0_hat), np.sqrt(variance)
        mass = norm.cdf(x_0 + 1 / 255, mean, std) - norm.cdf(x_0 - 1 / 255, mean, std)
        return float(-np.log(np.maximum(mass, 1e-12)).mean() / np.log(2))
    kl = np.log(np.sqrt(variance / beta_tilde)) + (beta_tilde + (posterior(x_0) - posterior(x_0_hat)) ** 2) / (2 * variance) - 0.5
    return float(kl.mean() / np.log(2))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_bound_against_numpy(prediction_type: str) -> None:
    """Oracle: the KL divergence of two normal distributions and, at t = 0, the mass of a grey level (SciPy), in float64."""
    it = at(learned_backbone(prediction_type), [0, 1, 2, 100, 500, 999])
    bits = variational_bound(it)
    assert bits.shape == (6,)
    for i in range(6):
        assert float(bits[i]) == pytest.approx(expected(it, i), rel=2e-5, abs=1e-6), int(it.t[i])


def test_the_true_posterior_costs_nothing() -> None:
    """Oracle: theory: a network that says eps and v = -1 (the posterior's own variance) has no divergence for t > 0."""
    backbone = learned_backbone()
    it = draw(backbone)
    it.t = torch.tensor([1, 10, 300, 999])
    it.network = Formula(lambda x, t: torch.cat([it.eps, -torch.ones_like(x)], dim=1))
    torch.testing.assert_close(variational_bound(it), torch.zeros(4), atol=1e-5, rtol=0)


def test_it_trains_the_variance_alone() -> None:
    """Oracle: autograd: the first half of the channels receives no gradient, the second does."""
    mean, v = torch.tensor(0.3, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    it = draw(learned_backbone(), network=Formula(lambda x, t: torch.cat([mean * x, v * torch.tanh(x)], dim=1)))
    it.t = torch.tensor([0, 1, 2, 3])  # later the two variances it lies between are nearly the same
    of_mean, of_v = torch.autograd.grad(variational_bound(it).sum(), [mean, v], allow_unused=True)
    assert of_mean is None or float(of_mean) == 0.0
    assert abs(float(of_v)) > 1e-3


def test_gradient_against_finite_differences() -> None:
    """Oracle: central differences in the variance's factor."""

    def value(v: Tensor) -> Tensor:
        it = draw(learned_backbone(), network=Formula(lambda x, t: torch.cat([0.3 * x, v * torch.tanh(x)], 1)))
        it.t = torch.tensor([0, 1, 2, 3])
        return variational_bound(it).sum()

    v = torch.tensor(0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(v), v)
    difference = (value(torch.tensor(0.51)) - value(torch.tensor(0.49))) / 0.02
    torch.testing.assert_close(gradient, difference, rtol=1e-2, atol=1e-3)


def test_a_learned_variance_adds_the_bound_once() -> None:
    """Oracle: Nichol & Dhariwal's hybrid with the coefficient 1: the terms of a step, of the whole step one forward pass."""
    backbone = learned_backbone()
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    method = DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values()))
    it = method.context(batch(), Randomness(0))
    objective = method.loss(it)
    assert objective.weight == {"denoising": 1.0, "vlb": 1.0}
    assert it.prediction.shape == it.x_0.shape
    torch.testing.assert_close(objective.per_sample["vlb"], variational_bound(it))
