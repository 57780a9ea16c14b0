import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.methods.draw import Draw, frozen
from fewshot_ray.methods.sdft import Sdft, SdftConfig, make_sdft, snr_weight
from fewshot_ray.models.backbone import Backbone
from tests.methods.conftest import ToyIngredients
from tests.tiny_diffusion import PREDICTION_TYPES, Calls, Formula, draw, tiny_backbone, tiny_unet

ALPHA_BAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def at(backbone: Backbone, t: Tensor) -> Draw:
    it = draw(backbone, count=len(t))
    it.t = t
    return it


@pytest.mark.parametrize(("gamma", "half"), [(1.0, 259), (3.0, 393), (50.0, 650), (100.0, 700)])
def test_half_weight_timesteps(gamma: float, half: int) -> None:
    """Oracle: the timesteps where (1 - alpha_bar)^gamma first reaches 1/2, linear schedule, T = 1000; NumPy float64 and by hand."""
    w = snr_weight(at(tiny_backbone(), torch.arange(1000)), gamma)
    assert int((w >= 0.5).float().argmax()) == half == int(((1 - ALPHA_BAR) ** gamma >= 0.5).argmax())
    np.testing.assert_allclose(w, (1 - ALPHA_BAR) ** gamma, atol=2e-4)
    assert bool((w.diff() >= 0).all())


def test_gamma_zero_weighs_all_noise_alike() -> None:
    """Oracle: the limiting case gamma = 0: 1 everywhere."""
    assert torch.equal(snr_weight(at(tiny_backbone(), torch.arange(1000)), 0.0), torch.ones(1000))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_terms_against_numpy(prediction_type: str) -> None:
    """Oracle: both losses in NumPy float64 for a teacher a x and a student b x: w (a - b)^2 mean(x^2) at x_t and at z alike."""
    backbone = tiny_backbone(prediction_type)
    a, b = 0.7, 0.4
    config = SdftConfig(lambda_distill=0.2, gamma_distill=2.0, lambda_aux=0.3, gamma_aux=4.0)
    it = draw(backbone, network=Formula(lambda x, t: b * x))
    objective = Sdft(config, Formula(lambda x, t: a * x))(it)
    assert objective.weight == {"distill": 0.2, "aux": 0.3}
    noise = 1 - ALPHA_BAR[it.t.numpy()]
    for term, x, gamma in (("distill", it.x_t, 2.0), ("aux", it.normal("sdft-aux"), 4.0)):
        expected = noise**gamma * (a - b) ** 2 * (x.double().numpy() ** 2).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(objective.per_sample[term], expected, rtol=2e-3)


def test_aux_sees_pure_noise_at_the_draws_timestep() -> None:
    """Oracle: what a recording student was called with: x_t of the draw, then standard normal z of its own, both at the draw's t."""
    seen: list[tuple[Tensor, Tensor]] = []

    def record(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return x

    it = draw(tiny_backbone(), network=Formula(record), count=64)
    Sdft(SdftConfig(), Formula(lambda x, t: x))(it)
    (x_t, _), (z, _) = seen
    assert x_t is it.x_t
    assert all(torch.equal(t, it.t) for _, t in seen)
    assert abs(z.mean()) < 4 / np.sqrt(z.numel())
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / z.numel())
    for other in (it.eps, it.x_0):
        assert abs((z * other).mean()) < 4 / np.sqrt(z.numel())


@pytest.mark.parametrize(
    ("lambdas", "student", "teacher"), [((0.1, 0.1), 2, 2), ((0.1, 0.0), 1, 1), ((0.0, 0.1), 1, 1), ((0.0, 0.0), 0, 0)]
)
def test_forward_passes(lambdas: tuple[float, float], student: int, teacher: int) -> None:
    """Oracle: counting networks: a term whose lambda is 0 costs nothing and is left out."""
    backbone = tiny_backbone()
    network, source = Calls(backbone.network), Calls(tiny_unet())
    it = draw(backbone, network=network)
    objective = Sdft(SdftConfig(lambda_distill=lambdas[0], lambda_aux=lambdas[1]), source)(it)
    assert (network.count, source.count) == (student, teacher)
    assert len(objective.per_sample) == sum(value > 0 for value in lambdas)


def test_a_student_equal_to_its_teacher_has_no_loss() -> None:
    """Oracle: theory: the first step begins at the source, where both terms are exactly 0."""
    backbone = tiny_backbone()
    for loss in Sdft(SdftConfig(), tiny_unet())(draw(backbone)).per_sample.values():
        torch.testing.assert_close(loss, torch.zeros(4), atol=1e-10, rtol=0)


def test_the_teacher_gets_no_gradient() -> None:
    """Oracle: autograd: none even for a teacher that nobody froze; the student gets all of it."""
    backbone, teacher = tiny_backbone(), tiny_unet(1)
    objective = Sdft(SdftConfig(), teacher)(draw(backbone))
    sum(loss.sum() for loss in objective.per_sample.values()).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in backbone.network.parameters())


def test_gradient_against_finite_differences() -> None:
    """Oracle: for a student b x the derivative of either term in b is 2 w (b - a) mean(x^2), by central differences."""
    a, b = 0.7, torch.tensor(0.4, requires_grad=True)

    def total(value: Tensor) -> Tensor:
        it = draw(tiny_backbone(), network=Formula(lambda x, t: value * x))
        objective = Sdft(SdftConfig(), Formula(lambda x, t: a * x))(it)
        return sum((objective.weight[term] * loss.sum() for term, loss in objective.per_sample.items()), torch.zeros(()))

    (gradient,) = torch.autograd.grad(total(b), b)
    difference = (total(torch.tensor(0.41)) - total(torch.tensor(0.39))) / 0.02
    torch.testing.assert_close(gradient, difference, rtol=1e-3, atol=1e-5)


def test_the_teacher_is_the_source(ingredients: ToyIngredients) -> None:
    """Oracle: the source network's weights; frozen, in eval mode, and no part of the student."""
    sdft = make_sdft(SdftConfig(), ingredients).regularizer
    assert isinstance(sdft, Sdft)
    assert not sdft.teacher.training
    assert not any(parameter.requires_grad for parameter in sdft.teacher.parameters())
    source = ingredients.backbone.network
    assert sdft.teacher is not source
    assert all(torch.equal(x, y) for x, y in zip(sdft.teacher.state_dict().values(), source.state_dict().values(), strict=True))
    assert frozen(sdft.teacher) is sdft.teacher


def test_the_papers_values() -> None:
    """Oracle: the paper's setting for MetFaces; the auxiliary gamma is the higher one."""
    config = SdftConfig()
    assert (config.lambda_distill, config.gamma_distill, config.lambda_aux, config.gamma_aux) == (0.1, 3.0, 0.1, 50.0)
