from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot_ray.methods.adversarial import Hinge, NonSaturating, gradient_penalty, path_lengths, path_penalty
from tests.tiny_gan import gan_draw, method_of, tiny_stylegan2, total

LOGITS = torch.tensor([[2.0, -1.0], [0.0, 3.0], [-0.5, 0.25]])
UNIFORM = torch.tensor([0.0, 0.5, 0.999])


def test_the_losses_against_numpy() -> None:
    """Oracle: the formulas in NumPy float64, patches averaged; the hinge's margin is .8 + .2 u."""
    x, margin = LOGITS.double().numpy(), 0.8 + 0.2 * UNIFORM.double().numpy()[:, None]
    soft, hinge = NonSaturating(), Hinge()
    np.testing.assert_allclose(soft.real(LOGITS, UNIFORM), np.log1p(np.exp(-x)).mean(1), rtol=1e-5)
    np.testing.assert_allclose(soft.fake(LOGITS, UNIFORM), np.log1p(np.exp(x)).mean(1), rtol=1e-5)
    np.testing.assert_allclose(soft.generator(LOGITS), np.log1p(np.exp(-x)).mean(1), rtol=1e-5)
    np.testing.assert_allclose(hinge.real(LOGITS, UNIFORM), np.maximum(0, margin - x).mean(1), rtol=1e-5)
    np.testing.assert_allclose(hinge.fake(LOGITS, UNIFORM), np.maximum(0, margin + x).mean(1), rtol=1e-5)
    np.testing.assert_allclose(hinge.generator(LOGITS), -x.mean(1), rtol=1e-5)


def test_r1_of_a_linear_and_a_quadratic_judge() -> None:
    """Oracle: by hand: of D(x) = <a, x> it is |a|^2; of D(x) = |x|^2 / 2 it is |x|^2, whose gradient in a scale s of D is 2 s |x|^2."""
    x = torch.randn((3, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    a = torch.randn((1, 4, 4), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gradient_penalty(x, lambda y: (a * y).sum(dim=(1, 2, 3))[:, None]), a.square().sum().expand(3))
    scale = torch.tensor(1.5, requires_grad=True)
    penalty = gradient_penalty(x, lambda y: scale * y.square().sum(dim=(1, 2, 3))[:, None] / 2)
    torch.testing.assert_close(penalty, 2.25 * x.square().sum(dim=(1, 2, 3)))
    (gradient,) = torch.autograd.grad(penalty.sum(), scale)
    torch.testing.assert_close(gradient, 3.0 * x.square().sum())


def test_path_lengths_of_a_linear_generator() -> None:
    """Oracle: NumPy float64: |J^T y| / sqrt(HW) with the squares' mean over the layers, for an image that is linear in the styles."""
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn((16, 2, 3), dtype=torch.float64, generator=generator)  # pixels, layers, style
    styles = torch.randn((5, 2, 3), dtype=torch.float64, generator=generator).requires_grad_()
    y = torch.randn((5, 1, 4, 4), dtype=torch.float64, generator=generator)
    image = torch.einsum("pld,bld->bp", jacobian, styles).view(5, 1, 4, 4)
    back = np.einsum("pld,bp->bld", jacobian.numpy(), y.flatten(1).numpy()) / 4
    expected = np.sqrt((back**2).sum(2).mean(1))
    np.testing.assert_allclose(path_lengths(image, styles, y).detach(), expected, rtol=1e-6)


def test_the_path_regularisation_follows_the_running_mean() -> None:
    """Oracle: the lengths by themselves: the target is decay times their mean after the first step; half a batch counts twice."""
    method = method_of(tiny_stylegan2(), path_decay=0.25, path_shrink=2, style_mixing=0.0)
    phase = next(phase for phase in method.phases() if phase.name == "G_path")
    assert [step for step in range(9) if phase.active(step)] == [0, 4, 8]
    draw, generator = gan_draw(method), method.gan.generator
    styles = generator.styles(generator.mapping(draw.normal("G_path/z", 16)[:4]))
    image = generator.synthesis(styles, [noise[:4] for noise in draw.noise("G_path")]).image
    lengths = path_lengths(image, styles, draw.normal("G_path/y", 1, 16, 16)[:4]).detach()
    objective = phase.loss(draw)
    torch.testing.assert_close(method.buffers()["mean_path_length"], 0.25 * lengths.mean())
    torch.testing.assert_close(objective.per_sample["path"].detach(), 2 * (lengths - 0.25 * lengths.mean()).square())
    assert objective.weight == {"path": 8.0}


@pytest.mark.parametrize("count", [1, 2])
def test_the_running_mean_is_in_the_graph(count: int) -> None:
    """Oracle: autograd through the mean's own formula, over all workers' lengths: `((l - lerp(a, mean l, decay))^2).sum()`."""
    lengths = torch.tensor([1.0, 2.0, 5.0, 7.0]).requires_grad_()
    mean = torch.tensor(3.0)
    penalty = (lengths - mean.lerp(lengths.mean(), 0.25)).square()
    (expected,) = torch.autograd.grad(penalty.sum(), lengths)
    parts = []
    for part in lengths.detach().chunk(count):
        own = part.clone().requires_grad_()
        new_mean = mean.lerp(lengths.detach().mean(), 0.25)
        loss = path_penalty(own, new_mean, 0.25, total=lengths.detach().sum(), count=torch.tensor(4.0))
        torch.testing.assert_close(loss, (part - new_mean).square())
        parts.append(torch.autograd.grad(loss.sum(), own)[0])
    torch.testing.assert_close(torch.cat(parts), expected)


def test_lazy_phases_and_their_weights() -> None:
    """Oracle: gamma / 2 times the interval; Adam's factor and betas k / (k + 1) of theirs, as in the paper's appendix B."""
    method = method_of(tiny_stylegan2(), r1=5.0, r1_every=16)
    names = [phase.name for phase in method.phases()]
    assert names == ["D", "D_r1", "G", "G_path"]
    r1 = method.phases()[1]
    assert [step for step in range(33) if r1.active(step)] == [0, 16, 32]
    assert r1.loss(gan_draw(method)).weight == {"r1": 40.0}
    assert {phase.optimizer for phase in method.phases()[:2]} == {"D"}
    assert {phase.optimizer for phase in method.phases()[2:]} == {"G"}
    factor, betas = method.recipe.lazy("D", (0.0, 0.99))  # type: ignore[attr-defined]
    assert (factor, betas[0], betas[1]) == (16 / 17, 0.0, pytest.approx(0.99 ** (16 / 17)))
    off = method_of(tiny_stylegan2(), r1=0.0, path_length=0.0)
    assert [phase.name for phase in off.phases()] == ["D", "G"]


def test_style_mixing_happens_with_its_probability() -> None:
    """Oracle: the share of 400 steps whose images have two latents' styles, .9 within four standard errors; none at 0."""
    method = method_of(tiny_stylegan2())
    mixed = 0
    for step in range(400):
        draw = gan_draw(method, step=step, count=2)
        styles = method.styles(draw, torch.zeros(2, 16), "G")  # type: ignore[attr-defined]
        mixed += bool((styles[:, 0] != styles[:, -1]).any())
    assert abs(mixed / 400 - 0.9) < 4 * (0.09 / 400) ** 0.5
    never = method_of(tiny_stylegan2(), style_mixing=0.0)
    assert torch.isfinite(total(never.generator_loss(gan_draw(never))))
