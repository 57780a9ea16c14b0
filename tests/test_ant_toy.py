"""bench/claims/ant_toy.py: its parts against hand-derived equations, and its claims on few seeds."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.claims import ant_toy as toy
from fewshot_ray.methods.ant import AntConfig

BETA = np.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = np.cumprod(1 - BETA)


@pytest.fixture(scope="module")
def network() -> Any:
    return toy.pretrain(toy.toy_schedule(), 3000)


def test_exact_classifier_is_bayes_rule() -> None:
    """Oracle: the two densities in NumPy float64; the gradient of log p is `(1 - p) sqrt(alpha_bar) (mu_target - mu_source)`."""
    x_t = np.random.default_rng(0).normal(size=(4, 2)) * 2
    t = np.array([0, 100, 500, 999])
    scale = np.sqrt(ALPHA_BAR[t])[:, None]
    densities = [np.exp(-0.5 * ((x_t - scale * mu) ** 2).sum(1)) for mu in (1.0, -1.0)]
    p = densities[1] / (densities[0] + densities[1])
    at = torch.tensor(x_t, dtype=torch.float32).view(4, 2, 1, 1)
    exact = toy.ExactClassifier(toy.toy_schedule())
    np.testing.assert_allclose(exact(at, torch.tensor(t)).sigmoid().numpy(), p, rtol=1e-4)
    shift = toy.PlaneAnt(AntConfig(guidance_weight="code"), toy.toy_schedule(), exact).target_shift(at, torch.tensor(t))
    gradient = (1 - p)[:, None] * scale * -2.0
    expected = -5 * (1 - ALPHA_BAR[t])[:, None] * gradient
    np.testing.assert_allclose(shift.flatten(1).numpy(), np.broadcast_to(expected, (4, 2)), rtol=1e-4, atol=1e-5)


def test_ascent_climbs_the_plane_s_loss_and_keeps_each_length() -> None:
    """Oracle: for eps_theta(x_t) = M x_t, `eps + 2 omega (I - sqrt(1 - alpha_bar) M)^T (eps - M x_t)` at eps's length, in NumPy, J = 3."""
    generator = np.random.default_rng(0)
    matrix, t = generator.normal(size=(2, 2)), np.array([10, 200, 500, 900])
    x_0, eps = generator.normal(size=(2, 4, 2))
    a, b = np.sqrt(ALPHA_BAR[t])[:, None], np.sqrt(1 - ALPHA_BAR[t])[:, None]

    def predict(x_t: Tensor, _: Tensor) -> Tensor:
        return (x_t.flatten(1) @ torch.tensor(matrix.T, dtype=torch.float32)).view_as(x_t)

    ant = toy.PlaneAnt(AntConfig(noise_steps=3, noise_step_size=0.05, noise_norm="moments"), toy.toy_schedule(), None)
    x_0_plane, eps_plane = (torch.tensor(value, dtype=torch.float32).view(4, 2, 1, 1) for value in (x_0, eps))
    found = ant.adversarial_noise(x_0_plane, torch.tensor(t), eps_plane, predict)
    expected = eps
    for _ in range(3):
        residual = expected - (a * x_0 + b * expected) @ matrix.T
        raised = expected + 0.05 * 2 * (residual - b * (residual @ matrix))
        expected = raised * np.linalg.norm(eps, axis=1, keepdims=True) / np.linalg.norm(raised, axis=1, keepdims=True)
    np.testing.assert_allclose(found.flatten(1).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - eps).max() > 0.05


def test_pretrained_network_and_sampler_know_the_source(network: Any) -> None:
    """Oracle: eps_theta of N(mu, I) is `sqrt(1 - alpha_bar) (x_t - sqrt(alpha_bar) mu)`; samples have mean 1 and the noise's std (1)."""
    schedule = toy.toy_schedule()
    x_t, t = toy.draw(5, 2000, 0.5), torch.linspace(0, 999, 2000).long()
    alpha_bar = torch.tensor(ALPHA_BAR, dtype=torch.float32)[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        error = network(x_t, t) - (1 - alpha_bar).sqrt() * (x_t - alpha_bar.sqrt())
    assert float(error.square().mean()) < 0.01
    half = toy.draw(6, 500, 0.0)
    noise = torch.cat([half, -half])
    samples = toy.sample(network, schedule, noise).flatten(1)
    np.testing.assert_allclose(samples.mean(0).numpy(), 1, atol=0.1)
    np.testing.assert_allclose(samples.std(0).numpy(), noise.flatten(1).std(0).numpy(), atol=0.1)


def test_guidance_turns_the_gradient_and_noise_raises_the_loss(network: Any) -> None:
    """Oracle: the bench's own targets, with 12 seeds instead of 40; the angle itself against (1, 1) and (1, 0)."""
    assert toy.degrees(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.0])) == pytest.approx(45)
    figures = toy.gradient_figures(network, toy.toy_schedule(), seeds=12, draws=100)
    assert [str(figure) for figure in figures if not figure.met] == []
    plain, guided, moved, rise = (figures[i].value for i in (0, 1, 4, 6))
    assert 3 < plain < 8
    assert guided < plain - 1.5
    assert moved > 0
    assert 0.02 < rise < 0.2


def test_ten_shots_bring_the_mean_closer_early(network: Any) -> None:
    """Oracle: the bench's own target on 3 seeds; the source is 2.83 away, plain fine-tuning between the two."""
    plain, ant, closer = toy.training_figures(network, toy.toy_schedule(), seeds=3, steps=100, least=1.0)
    assert closer.met, str(closer)
    assert ant.value < plain.value - 0.1
    assert 0.5 < plain.value < 2.0


def test_a_missed_target_is_said_and_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand; the result's file is not written here."""
    written: dict[str, Any] = {}
    monkeypatch.setattr(toy, "write_result", lambda name, command, figures: written.update(figures))
    monkeypatch.setattr(toy, "pretrain", lambda *_: None)
    monkeypatch.setattr(toy, "training_figures", lambda *_, **__: [toy.Figure("free", 3.0)])
    monkeypatch.setattr("sys.argv", ["ant_toy.py"])
    for value, code in ((0.9, 0), (0.89, 1)):
        monkeypatch.setattr(toy, "gradient_figures", lambda *_, value=value, **__: [toy.Figure("share", value, least=0.9)])
        assert toy.main() == code
        assert written["figures"][0] == {"name": "share", "value": value, "least": 0.9, "most": None}
        assert ("MISSED" in capsys.readouterr().out) == bool(code)
    assert toy.Figure("angle", 0.5, most=0.5).met
    assert not toy.Figure("angle", 0.6, most=0.5).met
