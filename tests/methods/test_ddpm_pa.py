import numpy as np
import pytest
import torch

from fewshot_ray.methods.ddpm_pa import DdpmPaConfig, HighFrequencyMse, Pairwise, high_frequencies, make_ddpm_pa
from fewshot_ray.methods.registry import Part
from tests.methods.conftest import ToyIngredients
from tests.tiny_diffusion import PREDICTION_TYPES, Formula, draw, tiny_backbone, tiny_unet


def similarities(images: np.ndarray) -> np.ndarray:
    """Each image's softmax over the others, one pair at a time."""
    flat = images.reshape(len(images), -1)
    rows = []
    for i, a in enumerate(flat):
        cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for j, b in enumerate(flat) if j != i]
        rows.append(np.exp(cosines) / np.exp(cosines).sum())
    return np.array(rows)


def haar(images: np.ndarray) -> np.ndarray:
    """LH + HL + HH by the products of L = (1, 1) / sqrt 2 and H = (-1, 1) / sqrt 2."""
    low, high = np.array([1, 1]) / np.sqrt(2), np.array([-1, 1]) / np.sqrt(2)
    n, c, h, w = images.shape
    blocks = images.reshape(n, c, h // 2, 2, w // 2, 2)
    return sum(np.einsum("ncaibj,i,j->ncab", blocks, rows, columns) for rows, columns in ((low, high), (high, low), (high, high)))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_pairwise_terms_against_numpy(prediction_type: str) -> None:
    """Oracle: KL(p_adapted || p_source) of softmaxed cosines in NumPy float64, for images and for their Haar components."""
    backbone = tiny_backbone(prediction_type)
    it = draw(backbone, network=Formula(lambda x, t: 0.3 * x.abs()), count=5)
    teacher = Formula(lambda x, t: 0.2 * x**2)
    config = DdpmPaConfig(lambda_image=0.2, lambda_high_frequency=0.7)
    pairwise = Pairwise(config, teacher)
    objective = pairwise.terms(pairwise.rows(it))
    assert objective.weight == {"pairwise": 0.2, "pairwise_hf": 0.7}
    adapted = it.x_0_hat.double().numpy()
    source = backbone.to_x_0(0.2 * it.x_t**2, it.x_t, it.t).double().numpy()
    for term, a, b in (("pairwise", adapted, source), ("pairwise_hf", haar(adapted), haar(source))):
        p, q = similarities(a), similarities(b)
        np.testing.assert_allclose(objective.per_sample[term], (p * np.log(p / q)).sum(axis=1), rtol=1e-3, atol=1e-6)


def test_high_frequencies_against_numpy() -> None:
    """Oracle: the Haar transform as products of its filters; none in a flat image; half the energy-preserving scale of each band."""
    images = torch.randn(2, 3, 8, 6)
    np.testing.assert_allclose(high_frequencies(images), haar(images.double().numpy()), atol=1e-6)
    assert float(high_frequencies(torch.full((1, 1, 4, 4), 0.7)).abs().max()) == 0.0


def test_high_frequency_error() -> None:
    """Oracle: the mean square over C, H, W of the components' difference, in NumPy float64."""
    it = draw(tiny_backbone(), network=Formula(lambda x, t: 0.3 * x))
    objective = HighFrequencyMse(DdpmPaConfig())(it)
    difference = haar(it.x_0_hat.double().numpy()) - haar(it.x_0.double().numpy())
    np.testing.assert_allclose(objective.per_sample["hf_mse"], (difference**2).mean(axis=(1, 2, 3)), rtol=1e-3)
    assert objective.weight == {"hf_mse": 0.05}


def test_a_student_equal_to_its_teacher_has_no_divergence() -> None:
    """Oracle: theory: the first step begins at the source."""
    backbone = tiny_backbone()
    pairwise = Pairwise(DdpmPaConfig(), tiny_unet())
    for loss in pairwise.terms(pairwise.rows(draw(backbone))).per_sample.values():
        torch.testing.assert_close(loss, torch.zeros(4), atol=1e-7, rtol=0)


def test_the_source_gets_no_gradient() -> None:
    """Oracle: autograd: none even for a teacher that nobody froze."""
    backbone, teacher = tiny_backbone(), tiny_unet(1)
    pairwise = Pairwise(DdpmPaConfig(), teacher)
    sum(pairwise.terms(pairwise.rows(draw(backbone))).per_sample.values()).sum().backward()  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in backbone.network.parameters())


def test_gradient_against_finite_differences() -> None:
    """Oracle: the derivative of the image divergence in a student's b, by central differences."""
    pairwise = Pairwise(DdpmPaConfig(lambda_high_frequency=0.0), Formula(lambda x, t: 0.2 * x**2))

    def value(b: torch.Tensor) -> torch.Tensor:
        it = draw(tiny_backbone(), network=Formula(lambda x, t: b * x.abs()), count=5)
        rows = {name: row.double() for name, row in pairwise.rows(it).items()}
        return pairwise.terms(rows).per_sample["pairwise"].mean()

    b = torch.tensor(0.4, requires_grad=True)
    (gradient,) = torch.autograd.grad(value(b), b)
    difference = (value(torch.tensor(0.42)) - value(torch.tensor(0.38))) / 0.04
    assert abs(float(gradient)) > 1e-5
    torch.testing.assert_close(gradient.double(), difference, rtol=1e-2, atol=1e-8)


def test_what_is_off_costs_nothing(ingredients: ToyIngredients) -> None:
    """Oracle: an empty part, and no teacher where only the training images are compared."""
    off = DdpmPaConfig(lambda_image=0.0, lambda_high_frequency=0.0, lambda_high_frequency_mse=0.0)
    assert make_ddpm_pa(off, ingredients) == Part()
    asked = len(ingredients.asked)
    assert make_ddpm_pa(DdpmPaConfig(lambda_image=0.0, lambda_high_frequency=0.0), ingredients).relation is None
    assert len(ingredients.asked) == asked
