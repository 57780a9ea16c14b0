import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.methods.ant import Ant, AntConfig, ant_stages, classifier_stage, guidance_weight, make_ant, normalize
from fewshot_ray.methods.draw import frozen
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.classifier import NoiseAwareClassifier
from tests.methods.conftest import ToyIngredients
from tests.tiny_diffusion import PREDICTION_TYPES, Calls, Formula, draw, images, normal, tiny_backbone

T = torch.tensor([1, 120, 480, 930])
NORMS = ("sample", "moments", "batch")
BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)


def ant(backbone: Backbone | None = None, classifier: nn.Module | None = None, **settings: Any) -> Ant:
    return Ant(AntConfig(**settings), (backbone or tiny_backbone()).schedule, classifier)


def normalize_in_numpy(eps: np.ndarray, drawn: np.ndarray, norm: str) -> np.ndarray:
    if norm == "batch":
        return (eps - eps.mean()) / eps.std()
    result = np.empty_like(eps)
    for i, row in enumerate(eps):
        result[i] = (row - row.mean()) / row.std()
        if norm == "moments":
            result[i] = result[i] * drawn[i].std() + drawn[i].mean()
    return result


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_adversarial_noise_against_a_linear_network_by_hand(prediction_type: str, norm: str) -> None:
    """Oracle: for eps_theta(x_t) = M x_t the gradient of Eq. 7 is 2 (I - sqrt(1 - alpha_bar) M)^T (eps - M x_t), in NumPy float64, J = 3.

    t is held through the steps; the same noise comes out whichever space the network predicts in.
    """
    backbone, omega, t = tiny_backbone(prediction_type), 0.05, torch.tensor([60, 120, 480, 930])
    matrix = np.random.default_rng(0).normal(size=(64, 64)) * 0.05
    alpha_bar = ALPHA_BAR[t.numpy()]

    def output(x_t: Tensor, at: Tensor) -> Tensor:
        eps = (x_t.flatten(1) @ torch.tensor(matrix.T, dtype=torch.float32)).view_as(x_t)
        return backbone.target(backbone_x_0(x_t, eps, at), eps, at)

    def backbone_x_0(x_t: Tensor, eps: Tensor, at: Tensor) -> Tensor:
        bar = backbone.schedule.alpha_bar(at)
        return (x_t - (1 - bar).sqrt() * eps) / bar.sqrt()

    x_0, drawn = images(4), normal(4)
    it = draw(backbone, network=Formula(output))
    result = ant(noise_steps=3, noise_step_size=omega, noise_norm=norm).adversarial_noise(x_0, t, drawn, it.predict_eps)

    x, first = (array.double().numpy().reshape(4, 64) for array in (x_0, drawn))
    eps = first.copy()
    for _ in range(3):
        stepped = np.empty_like(eps)
        for i in range(4):
            x_t = np.sqrt(alpha_bar[i]) * x[i] + np.sqrt(1 - alpha_bar[i]) * eps[i]
            jacobian = np.eye(64) - np.sqrt(1 - alpha_bar[i]) * matrix
            stepped[i] = eps[i] + omega * 2 * jacobian.T @ (eps[i] - matrix @ x_t)
        eps = normalize_in_numpy(stepped, first, norm)
    np.testing.assert_allclose(result.reshape(4, 64), eps, atol=2e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_norms_against_numpy(norm: Any) -> None:
    """Oracle: mean and population standard deviation over the stated axes in NumPy float64."""
    eps, drawn = 3 * normal(4, 2, channels=3) + 0.5, normal(4, 3, channels=3)
    expected = normalize_in_numpy(eps.double().numpy(), drawn.double().numpy(), norm)
    np.testing.assert_allclose(normalize(eps, drawn, norm), expected, atol=1e-5)


@pytest.mark.parametrize("norm", ["sample", "moments"])
def test_an_image_gets_its_noise_whatever_it_stands_beside(norm: str) -> None:
    """Oracle: each image alone: the sum over pixels keeps the images of a batch apart."""
    backbone, x_0, eps = tiny_backbone(), images(4), normal(4)
    it, select = draw(backbone), ant(noise_steps=2, noise_norm=norm)
    together = select.adversarial_noise(x_0, T, eps, it.predict_eps)
    alone = [select.adversarial_noise(x_0[i : i + 1], T[i : i + 1], eps[i : i + 1], it.predict_eps) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_no_steps_keep_the_drawn_noise() -> None:
    """Oracle: the limiting case J = 0: eps itself, and no forward pass."""
    backbone, eps = tiny_backbone(), normal(4)
    network = Calls(backbone.network)
    selected = ant(noise_steps=0, guidance=0.0)(images(4), T, eps, draw(backbone, network=network).predict_eps)
    assert selected.eps is eps
    assert selected.target_shift is None
    assert network.count == 0


def test_the_ascent_leaves_nothing_behind() -> None:
    """Oracle: autograd: no parameter has a gradient, eps* has no graph, x_0 and the drawn noise are as they were; one pass a step."""
    backbone, x_0, eps = tiny_backbone(), images(4), normal(4)
    network, kept = Calls(backbone.network.train()), normal(4)
    eps_star = ant(noise_steps=4).adversarial_noise(x_0, T, eps, draw(backbone, network=network).predict_eps)
    assert network.count == 4
    assert all(parameter.grad is None for parameter in backbone.network.parameters())
    assert not eps_star.requires_grad
    assert eps_star.grad_fn is None
    assert torch.equal(eps, kept)
    assert not eps.requires_grad


@pytest.mark.parametrize(("norm", "omega"), [("sample", 0.02), ("moments", 0.02), ("moments", 0.005)])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_chosen_noise_is_harder(prediction_type: str, norm: Any, omega: float) -> None:
    """Oracle: ascent on ||eps - eps_theta||^2 must raise it, against the drawn noise under the same Norm, for at least nine in ten."""
    backbone, x_0, eps = tiny_backbone(prediction_type), images(40), normal(40)
    t = torch.linspace(20, 980, 40).long()
    predict = draw(backbone).predict_eps
    drawn = normalize(eps, eps, norm)

    @torch.no_grad()
    def loss(noise: Tensor) -> Tensor:
        return (noise - predict(backbone.schedule.add_noise(x_0, noise, t), t)).square().sum(dim=(1, 2, 3))

    eps_star = ant(backbone, noise_steps=5, noise_step_size=omega, noise_norm=norm).adversarial_noise(x_0, t, drawn, predict)
    assert (loss(eps_star) > loss(drawn)).float().mean() >= 0.9


def linear_classifier(weight: Tensor) -> Formula:
    """Logit w . x_t."""

    class Linear(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return (x_t * weight).sum(dim=(1, 2, 3))

    return Linear()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("name", "w_t"),
    [
        ("paper", lambda t: ((1 - ALPHA_BAR[t - 1]) * np.sqrt((1 - BETA[t]) / (1 - ALPHA_BAR[t]))) ** 2),
        ("derived", lambda t: (1 - ALPHA_BAR[t - 1]) * np.sqrt((1 - BETA[t]) / (1 - ALPHA_BAR[t]))),
        ("code", lambda t: 1 - ALPHA_BAR[t]),
    ],
)
def test_target_shift_against_a_linear_classifier_by_hand(name: Any, w_t: Callable[[np.ndarray], np.ndarray]) -> None:
    """Oracle: for a logit w . x the gradient of log sigmoid is (1 - sigmoid(w . x)) w; Eq. 8 subtracts gamma w_t times it; float64."""
    x_t, weight = normal(4, 5), 0.2 * normal(1, 6)
    shift = ant(classifier=linear_classifier(weight), guidance=3.0, guidance_weight=name).target_shift(x_t, T)
    w = weight.double().numpy()
    logit = (x_t.double().numpy() * w).sum(axis=(1, 2, 3), keepdims=True)
    gradient = (1 - 1 / (1 + np.exp(-logit))) * w
    expected = -3.0 * w_t(T.numpy())[:, None, None, None] * gradient
    np.testing.assert_allclose(shift, expected, rtol=5e-3, atol=1e-6)


def test_guidance_weights_in_numbers() -> None:
    """Oracle: hand-derived at t = 50, linear, T = 1000: sigma_hat .167, squared .028, 1 - alpha_bar .030; 0 at t = 0."""
    schedule, t = tiny_backbone().schedule, torch.tensor([50])
    assert guidance_weight(schedule, t, "derived").item() == pytest.approx(0.167, abs=5e-4)
    assert guidance_weight(schedule, t, "paper").item() == pytest.approx(0.028, abs=5e-4)
    assert guidance_weight(schedule, t, "code").item() == pytest.approx(0.030, abs=5e-4)
    assert guidance_weight(schedule, torch.tensor([0]), "paper").item() == 0


def test_guidance_moves_samples_towards_the_target() -> None:
    """Oracle: the meaning of the sign: a network that has learnt the shifted target points to an x_0 the classifier likes better."""
    backbone, x_0, eps = tiny_backbone(), images(4), normal(4)
    weight = torch.ones(1, 1, 8, 8) * 0.05
    shift = ant(classifier=linear_classifier(weight)).target_shift(backbone.schedule.add_noise(x_0, eps, T), T)
    x_t = backbone.schedule.add_noise(x_0, eps, T)
    guided = backbone.to_x_0(eps + shift, x_t, T)
    assert ((guided - x_0) * weight).sum(dim=(1, 2, 3)).min() > 0


def test_the_classifier_gets_no_gradient() -> None:
    """Oracle: autograd: backward through the whole loss leaves the frozen classifier, and the shift, without gradient."""
    backbone, classifier = tiny_backbone(), frozen(NoiseAwareClassifier(1, (8, 8), width=16))
    it = draw(backbone, ant(backbone, classifier, noise_steps=1))
    assert not it.target.requires_grad
    (it.prediction - it.target).square().mean().backward()
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert all(parameter.grad is not None for parameter in backbone.network.parameters())


def test_the_shift_works_under_no_grad_and_is_zero_where_gamma_is() -> None:
    """Oracle: the limiting case gamma = 0; and the same numbers whether or not the caller records a graph."""
    classifier, x_0, eps = frozen(NoiseAwareClassifier(1, (8, 8), width=16)), images(4), normal(4)
    predict = draw(tiny_backbone()).predict_eps
    assert ant(classifier=classifier, guidance=0.0, noise_steps=0)(x_0, T, eps, predict).target_shift is None
    one = ant(classifier=classifier, noise_steps=1)
    recorded = one(x_0, T, eps, predict)
    with torch.no_grad():
        silent = one(x_0, T, eps, predict)
    assert recorded.target_shift is not None
    assert silent.target_shift is not None
    assert torch.equal(recorded.eps, silent.eps)
    assert torch.equal(recorded.target_shift, silent.target_shift)


def test_the_classifiers_key_depends_on_what_it_was_trained_on_alone(ingredients: ToyIngredients) -> None:
    """Oracle: the list of what it is trained on: a sweep over ANT's other knobs shares one, another fold or schedule doesn't."""
    key = classifier_stage(AntConfig(), ingredients).key
    other_knobs = AntConfig(noise_steps=1, noise_step_size=0.1, noise_norm="moments", guidance=1.0, guidance_weight="code")
    assert classifier_stage(other_knobs, ingredients).key == key
    for changed in ({"classifier_steps": 9}, {"classifier_batch": 8}, {"classifier_lr": 1e-3}):
        assert classifier_stage(AntConfig(**changed), ingredients).key != key
    for changed in ({"target_hash": "other fold"}, {"seed": 1}, {"backbone": tiny_backbone(beta_schedule="squaredcos_cap_v2")}):
        other = copy.copy(ingredients)
        for name, value in changed.items():
            setattr(other, name, value)
        assert classifier_stage(AntConfig(), other).key != key


def test_without_guidance_nobody_needs_source_images(ingredients: ToyIngredients) -> None:
    """Oracle: a list of what was asked for."""
    fresh = ToyIngredients(ingredients.cache)
    assert ant_stages(AntConfig(guidance=0.0), fresh) == []
    selector = make_ant(AntConfig(guidance=0.0), fresh).selector
    assert isinstance(selector, Ant)
    assert selector.classifier is None
    assert fresh.asked == []


def test_the_classifier_comes_from_the_cache_frozen(ingredients: ToyIngredients) -> None:
    """Oracle: the stage's tensors; eval mode; no gradients; trained once."""
    config = AntConfig(classifier_steps=2, classifier_batch=4)
    first, second = (make_ant(config, ingredients).selector for _ in range(2))
    assert isinstance(first, Ant)
    assert isinstance(second, Ant)
    assert first.classifier is not None
    assert second.classifier is not None
    assert not first.classifier.training
    assert not any(parameter.requires_grad for parameter in first.classifier.parameters())
    stored = ingredients.read(classifier_stage(config, ingredients))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in first.classifier.state_dict().items())
    assert all(torch.equal(tensor, stored[name]) for name, tensor in second.classifier.state_dict().items())
