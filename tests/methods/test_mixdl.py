from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.methods.mixdl import MixDl, MixDlConfig, mixdl_part
from tests.tiny_gan import GANS, gan_draw, method_of, play_of, tiny_gan, total


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * (np.log(p) - np.log(q))).sum(axis=-1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.ravel() * b.ravel()).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def members(index: int, batch: int, latents: int) -> list[int]:
    """An image's group, by the rule the page states: those with its number modulo the number of groups."""
    groups = batch // latents
    return [other for other in range(batch) if other % groups == index % groups]


@pytest.mark.parametrize("name", GANS)
@pytest.mark.parametrize("divergence", ["paper", "code"])
def test_the_generators_distance_against_numpy(name: str, divergence: str) -> None:
    """Oracle: L_dist^G in NumPy float64 from the generator's activations, anchor by anchor, each in its group and at its layer."""
    config = MixDlConfig(divergence=divergence, every_steps=1)
    method = method_of(tiny_gan(name), [mixdl_part(config, tiny_gan(name))])
    method.gan.generator.eval()
    mixdl = method.mixup
    assert isinstance(mixdl, MixDl)
    play = play_of(method)
    objective = mixdl.generator(play)
    layer, c = play.draw.integers("G/layer", len(mixdl.layers)), mixdl.coefficients(play.draw, "G").double().numpy()
    expected = []
    for anchor in range(8):
        at = mixdl.layers[int(layer[anchor])]
        a, others = play.anchors.features[at].detach().double().numpy(), play.fakes.features[at].detach().double().numpy()
        q = softmax(np.array([cosine(a[anchor], others[member]) for member in members(anchor, 8, 4)]))
        p = softmax(c[anchor])
        expected.append(kl(q, p) if divergence == "paper" else kl(p, q))
    np.testing.assert_allclose(objective.per_sample["distance_g"].detach(), expected, rtol=1e-3, atol=1e-6)
    assert objective.weight == {"distance_g": 1000.0}


@pytest.mark.parametrize("name", GANS)
def test_the_discriminators_distance_against_numpy(name: str) -> None:
    """Oracle: L_dist^D in NumPy float64 from d^1 and the projection's matrix."""
    config = MixDlConfig(lambda_d=2.0, every_steps=1)
    method = method_of(tiny_gan(name), [mixdl_part(config, tiny_gan(name))])
    mixdl = method.mixup
    assert isinstance(mixdl, MixDl)
    play = play_of(method, "D")
    objective = mixdl.discriminator(play)
    weight, bias = (tensor.detach().double().numpy() for tensor in (mixdl.projection.weight, mixdl.projection.bias))
    anchors, others = (view.hidden.detach().double().numpy() @ weight.T + bias for view in (play.judged_view, play.fakes_view))
    c = mixdl.coefficients(play.draw, "D").double().numpy()
    expected = [kl(softmax(np.array([cosine(anchors[a], others[m]) for m in members(a, 8, 4)])), softmax(c[a])) for a in range(8)]
    np.testing.assert_allclose(objective.per_sample["distance_d"].detach(), expected, rtol=1e-3, atol=1e-6)
    assert objective.weight == {"distance_d": 2.0}


def test_the_distance_is_zero_where_similarities_differ_as_the_coefficients_do() -> None:
    """Oracle: softmax(c + constant) = softmax(c): the divergence is exactly 0 there, and positive elsewhere."""
    mixdl = MixDl(MixDlConfig(), tiny_gan("stylegan2"))
    c = torch.tensor([[0.125, 0.25, 0.5, 0.125]])
    assert mixdl.distance(c + 0.5, c).item() == 0.0
    assert mixdl.distance(c.flip(1), c).item() > 0


def test_coefficients_are_dirichlet() -> None:
    """Oracle: the moments of Dir(alpha, ..., alpha): mean 1/N, variance (N - 1) / (N^2 (N alpha + 1)); and rows that sum to 1."""
    for alpha in (0.1, 1.0, 10.0):
        gan = tiny_gan("stylegan2")
        mixdl = MixDl(MixDlConfig(alpha=alpha), gan)
        c = mixdl.coefficients(gan_draw(method_of(gan), count=4000), "G").double()
        torch.testing.assert_close(c.sum(dim=1), torch.ones(4000, dtype=torch.float64), rtol=0, atol=1e-6)
        assert c.mean().item() == pytest.approx(0.25, abs=1e-6)
        assert c.var(dim=0).mean().item() == pytest.approx(3 / (16 * (4 * alpha + 1)), rel=0.05)


def test_an_anchor_is_the_mixture_of_its_groups_codes() -> None:
    """Oracle: sum_i c_i w_i by hand."""
    gan = tiny_gan("stylegan2")
    method = method_of(gan, [mixdl_part(MixDlConfig(), gan)])
    mixdl = method.mixup
    assert isinstance(mixdl, MixDl)
    draw = gan_draw(method)
    w = torch.randn(8, 16)
    mixed, c = mixdl.mix(w, draw, "G"), mixdl.coefficients(draw, "G")
    for anchor in range(8):
        expected = sum(c[anchor, i] * w[member] for i, member in enumerate(members(anchor, 8, 4)))
        torch.testing.assert_close(mixed[anchor], expected)


def grads(method: object, loss: Tensor) -> tuple[bool, bool]:
    """Whether the loss's gradient reaches G's and D's weights."""
    gan = method.gan  # type: ignore[attr-defined]
    found = []
    for module in (gan.generator, gan.discriminator):
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        found.append(any(gradient is not None and bool(gradient.any()) for gradient in gradients))
    return found[0], found[1]


@pytest.mark.parametrize("name", GANS)
@pytest.mark.parametrize("step", [0, 1])
def test_the_discriminators_step_gives_the_generator_nothing(name: str, step: int) -> None:
    """Oracle: autograd: no path from D's loss to G's weights; G's loss passes through D, but its phase holds G's weights alone."""
    gan = tiny_gan(name)
    method = method_of(gan, [mixdl_part(MixDlConfig(), gan)])
    phases = {phase.name: phase for phase in method.phases()}
    assert grads(method, total(phases["D"].loss(gan_draw(method, step=step)))) == (False, True)
    assert grads(method, total(phases["G"].loss(gan_draw(method, step=step))))[0]
    own = {id(parameter) for parameter in phases["G"].parameters}
    assert own == {id(parameter) for parameter in gan.generator.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in phases["D"].parameters)


@pytest.mark.parametrize("name", GANS)
def test_mixtures_are_judged_on_their_steps_only(name: str) -> None:
    """Oracle: the schedule: every second step's objective has the distance terms, the others are a plain GAN's."""
    gan = tiny_gan(name)
    method = method_of(gan, [mixdl_part(MixDlConfig(), gan)])
    terms = [set(method.generator_loss(gan_draw(method, step=step)).per_sample) for step in range(4)]
    assert terms == [{"generator"}, {"generator", "distance_g"}] * 2


def test_weights_of_zero_leave_a_plain_gan() -> None:
    """Oracle: the limiting case: the losses of the GAN without the method, bit for bit."""
    gan = tiny_gan("stylegan2")
    plain, off = method_of(gan), method_of(gan, [mixdl_part(MixDlConfig(lambda_g=0, lambda_d=0), gan)])
    for step in (0, 1):
        for one, other in zip(plain.phases(), off.phases(), strict=True):
            assert torch.equal(total(one.loss(gan_draw(plain, step=step))), total(other.loss(gan_draw(off, step=step))))


def test_every_head_and_the_image_get_r1() -> None:
    """Oracle: autograd: R1's gradient reaches the image's last layer and the patch head, on a step of mixtures and on a plain one.

    In the authors' code it falls on steps of mixtures alone, where the image's head isn't used.
    """
    gan = tiny_gan("stylegan2")
    method = method_of(gan, [mixdl_part(MixDlConfig(), gan)])
    mixdl = method.mixup
    assert isinstance(mixdl, MixDl)
    (r1,) = (phase for phase in method.phases() if phase.name == "D_r1")
    for step in (0, 1):
        draw = gan_draw(method, step=step)
        loss = total(r1.loss(draw))
        heads = [gan.discriminator.final_linear[1].weight, *(patch.weight for patch in mixdl.patches.values())]
        gradients = torch.autograd.grad(loss, heads, allow_unused=True)
        assert gradients[0] is not None
        assert bool(gradients[0].any())
        assert sum(gradient is not None and bool(gradient.any()) for gradient in gradients[1:]) == 1  # the map drawn for the step


@pytest.mark.parametrize("name", GANS)
def test_two_workers_share_a_step(name: str) -> None:
    """Oracle: one worker's losses with the whole batch: each worker's `rank::2` part gives its images' (networks in eval mode)."""
    gan = tiny_gan(name)
    gan.generator.eval()
    gan.discriminator.eval()
    method = (
        method_of(gan, [mixdl_part(MixDlConfig(), gan)], style_mixing=0.5)
        if name == "stylegan2"
        else method_of(gan, [mixdl_part(MixDlConfig(), gan)])
    )
    for step in (0, 1):
        for loss in (method.discriminator_loss, method.generator_loss):
            whole = loss(gan_draw(method, step=step)).per_sample
            for rank in (0, 1):
                part = loss(gan_draw(method, step=step, own=slice(rank, None, 2))).per_sample
                for term, values in whole.items():
                    torch.testing.assert_close(part[term], values[rank::2], rtol=1e-4, atol=1e-5)
