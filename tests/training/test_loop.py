"""The loop's reductions, phases, rates and failures, on methods small enough to follow by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.data.digits import digits
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.phase import Batch, Objective, Phase
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.parameters import FullConfig, tune
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import NonFiniteLossError, Training
from tests.conftest import Workers
from tests.tiny_diffusion import tiny_backbone
from tests.training.toys import Bare, Toy, Worker, grey, squares, training

FOUR = grey(0, 60, 200, 255)
X = [value / 127.5 - 1 for value in (0, 60, 200, 255)]


def denoiser(**settings: object) -> Training:
    backbone = tiny_backbone()
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    method = DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values(), lr=1.0))
    return training(method, digits("shots").images, batch_size=5, lr=0.1, **settings)


def test_a_step_follows_the_mean_over_the_batch() -> None:
    """Oracle: d/dw mean (w - x)^2 = 2 (w - mean x), and the loss before the step."""
    run = training(Toy([0.5], squares), FOUR, lr=0.1)
    assert run.advance(1) == pytest.approx(sum((0.5 - x) ** 2 for x in X) / 4, rel=1e-5)
    assert run.method.trained()["w"].item() == pytest.approx(0.5 - 0.1 * 2 * (0.5 - sum(X) / 4), rel=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_accumulation_gives_the_same_step(micro_batch: int) -> None:
    """Oracle: the whole batch at once, on a real network, with SGD (Adam would blow up rounding where a gradient is near 0)."""
    whole, parts = denoiser(), denoiser(micro_batch=micro_batch)
    assert parts.advance(2) == pytest.approx(whole.advance(2), rel=1e-6)
    for name, parameter in whole.method.trained().items():
        torch.testing.assert_close(parts.method.trained()[name], parameter, rtol=1e-6, atol=1e-6)


def two_terms(w: Tensor, batch: Batch) -> Objective:
    """`w x`, and `w^2` times the image's place in the global batch."""
    return Objective({"image": w * batch.x_0[:, 0, 0, 0], "place": w**2 * batch.positions.float()}, {"image": 1.0, "place": 0.5})


@pytest.mark.parametrize("micro_batch", [1, 3, "auto"])
def test_terms_are_weighted_means_over_the_global_batch(micro_batch: int | str) -> None:
    """Oracle: mean x + .5 (0 + 1 + 2 + 3) / 4 * 2 w, however the batch is cut up."""
    run = training(Toy([2.0], two_terms), FOUR, lr=0.1, micro_batch=micro_batch)
    loss = run.advance(1)
    assert loss == pytest.approx(2 * sum(X) / 4 + 0.5 * 4 * 1.5, rel=1e-5)
    assert run.method.trained()["w"].item() == pytest.approx(2 - 0.1 * (sum(X) / 4 + 0.5 * 2 * 2 * 1.5), rel=1e-5)


def _two_workers(batch_size: int, micro_batch: int | str) -> tuple[float, float]:
    run = training(Toy([2.0], two_terms, torch.optim.Adam), FOUR, group=Group(), lr=0.1, batch_size=batch_size, micro_batch=micro_batch)
    return run.advance(5), run.method.trained()["w"].item()


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(4, "auto"), (5, 2), (1, "auto")])
def test_two_workers_take_one_workers_steps(workers: Workers, batch_size: int, micro_batch: int | str) -> None:
    """Oracle: the run of one worker; 5 over 2 is uneven in images and in micro-batches, with 1 the second worker has nothing."""
    loss, w = _two_workers(batch_size, micro_batch)
    for other_loss, other_w in workers.run(_two_workers, batch_size, micro_batch):
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert other_w == pytest.approx(w, rel=1e-5)


class Adversaries(Bare):
    """A generator `g z` against a critic `d x` with a lazy R1 penalty; all four phases share the fakes, pairs of them an optimiser."""

    def __init__(self) -> None:
        self.g, self.d = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.tensor(2.0))
        self._optimizers = {"G": torch.optim.SGD([self.g], lr=1.0), "D": torch.optim.SGD([self.d], lr=1.0, momentum=0.5)}
        self.contexts = self.finished = 0

    def context(self, batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        self.contexts += 1
        z = randomness.normal(batch.step, "z", (batch.global_size,))[batch.positions]
        return {"x": batch.x_0[:, 0, 0, 0], "z": z, "fake": self.g * z}

    def forget(self, context: dict[str, Tensor]) -> None:
        context["fake"] = self.g * context["z"]

    def critic(self, c: dict[str, Tensor]) -> Objective:
        return Objective({"fake": self.d * c["fake"], "real": -self.d * c["x"]}, {"fake": 1.0, "real": 1.0})

    def r1(self, c: dict[str, Tensor]) -> Objective:
        x = c["x"].clone().requires_grad_()
        (gradient,) = torch.autograd.grad((self.d * x).sum(), x, create_graph=True)
        return Objective({"r1": gradient.square()}, {"r1": 0.25})

    def generator(self, c: dict[str, Tensor]) -> Objective:
        return Objective({"generator": -self.d * c["fake"]}, {"generator": 1.0})

    def size(self, c: dict[str, Tensor]) -> Objective:
        return Objective({"size": c["fake"].square()}, {"size": 0.5})

    def phases(self) -> Sequence[Phase]:
        return [
            Phase("D", [self.d], "D", self.critic),
            Phase("D_r1", [self.d], "D", self.r1, active=lambda step: step % 2 == 1, gradient_scale=2.0),
            Phase("G", [self.g], "G", self.generator),
            Phase("G_size", [self.g], "G", self.size),
        ]

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return self._optimizers

    def trained(self) -> Mapping[str, nn.Parameter]:
        return {"g": self.g}

    def auxiliary(self) -> Mapping[str, nn.Parameter]:
        return {"d": self.d}

    def modules(self) -> Mapping[str, nn.Module]:
        return {}

    def after_step(self, context: dict[str, Tensor]) -> None:
        self.finished += 1


@pytest.mark.parametrize("micro_batch", [1, 3, "auto"])
def test_phases_share_a_context_and_an_optimiser(micro_batch: int | str) -> None:
    """Oracle: the updates by hand. D: mean(g z) - mean x; its penalty d^2 / 4 every other step, doubled, in the same momentum;
    G: -d mean z with the critic as D's phases left it, then g mean z^2 of the fakes as they were drawn. No phase's gradient
    reaches another's parameters.
    """
    method = Adversaries()
    run = training(method, FOUR, seed=3, lr=0.1, micro_batch=micro_batch)
    randomness, real = Randomness(3), sum(X) / 4
    g, d, momentum = 0.5, 2.0, 0.0
    for step in range(4):
        loss = run.advance(step + 1)
        noise = randomness.normal(step, "z", (4,))
        z, z_squared = noise.mean().item(), noise.square().mean().item()
        expected_loss = d * g * z - d * real
        momentum = 0.5 * momentum + g * z - real
        d -= 0.1 * momentum
        if step % 2 == 1:
            expected_loss += 0.25 * d**2
            momentum = 0.5 * momentum + 2 * 0.5 * d
            d -= 0.1 * momentum
        expected_loss += -d * g * z + 0.5 * g**2 * z_squared
        g -= 0.1 * (-d * z + g * z_squared)
        assert (method.d.item(), method.g.item()) == pytest.approx((d, g), rel=1e-5)
        assert loss == pytest.approx(expected_loss, rel=1e-5, abs=1e-6)
    assert method.contexts == 4 * {1: 4, 3: 2, "auto": 1}[micro_batch]
    assert method.finished == 4


def test_the_clip_is_on_the_whole_gradient() -> None:
    """Oracle: a gradient (3, 4) of norm 5, clipped to .5, is (.3, .4)."""

    def slope(w: Tensor, batch: Batch) -> Objective:
        return Objective({"slope": (w * torch.tensor([3.0, 4.0])).sum().expand(len(batch.x_0))}, {"slope": 1.0})

    run = training(Toy([0.0, 0.0], slope), FOUR, lr=1.0, gradient_clip=0.5, micro_batch=1)
    run.advance(1)
    assert run.method.trained()["w"].tolist() == pytest.approx([-0.3, -0.4], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({}, [2.0, 2.0, 2.0, 2.0]),
        ({"lr_schedule": "cosine"}, [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]),
        ({"lr_warmup_steps": 3}, [0.5, 1.0, 1.5, 2.0]),
        ({"lr_schedule": "cosine", "lr_warmup_steps": 1}, [1.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]),
    ],
)
def test_learning_rates(settings: dict[str, object], rates: list[float]) -> None:
    """Oracle: cosines of 0, 45, 90 and 135 degrees and quarters of the warm-up; a slope of 1 turns them into steps of that size."""

    def slope(w: Tensor, batch: Batch) -> Objective:
        return Objective({"slope": w.expand(len(batch.x_0))}, {"slope": 1.0})

    run = training(Toy([0.0], slope), FOUR, lr=2.0, steps=4, **settings)
    assert [run.learning_rate(step) for step in range(4)] == pytest.approx(rates)
    moved = []
    for step in range(4):
        before = run.method.trained()["w"].item()
        run.advance(step + 1)
        moved.append(before - run.method.trained()["w"].item())
    assert moved == pytest.approx(rates, rel=1e-5)


@pytest.mark.parametrize(
    ("breaks_at", "message"), [(3, r"toy loss is nan at step 3; the last finite value was 0\.64"), (1, "at step 1; there was no finite")]
)
def test_a_loss_that_is_no_number_ends_the_training(breaks_at: int, message: str) -> None:
    """Oracle: (0 - .8)^2 = .64 before. It is seen when the losses are read, after the fifth step, and the first that is broken is named."""

    def loss(w: Tensor, batch: Batch) -> Objective:
        value = math.nan if batch.step == breaks_at - 1 else 1.0
        return Objective({"square": (0 * w - 0.8).square().expand(len(batch.x_0)) * value}, {"square": 1.0})

    run = training(Toy([0.25], loss), FOUR)
    with pytest.raises(NonFiniteLossError, match=message) as raised:
        run.advance(5)
    assert "\n" not in str(raised.value)
    assert run.step == 5
    assert run.recent_losses == []


def test_advance_returns_the_mean_and_reports_each_step() -> None:
    """Oracle: the losses one by one; nothing to do is not a number."""
    whole, single = training(Toy([0.5], squares), FOUR, lr=0.1), training(Toy([0.5], squares), FOUR, lr=0.1)
    losses = [single.advance(step) for step in (1, 2, 3)]
    assert whole.advance(3) == pytest.approx(sum(losses) / 3)
    assert math.isnan(whole.advance(3))
    assert whole.method.steps_seen == [0, 1, 2]


def test_bf16_keeps_the_parameters_in_float32() -> None:
    """Oracle: dtypes of weights, gradients and averages; the loss is near float32's and not equal to it."""
    exact, rounded = denoiser(), denoiser(precision="bf16")
    losses = exact.advance(1), rounded.advance(1)
    for parameter in rounded.method.trained().values():
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    assert all(average.dtype == torch.float32 for average in rounded.ema.state().values())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_auto_takes_the_whole_own_part_on_a_cpu() -> None:
    """Oracle: 5 over 2 workers is 3 at most; a number is kept to the own part."""
    alone = training(Toy([0.5], squares), FOUR, batch_size=5)
    assert alone.micro_batch == 5
    assert training(Toy([0.5], squares), FOUR, batch_size=5, micro_batch=9).micro_batch == 5
    assert training(Toy([0.5], squares), FOUR, batch_size=5, micro_batch=3, group=Worker(1, 2)).micro_batch == 3


def test_layers_are_in_training_mode_for_training_alone() -> None:
    """Oracle: a dropout's flag within and after `advance`."""
    dropout = nn.Dropout()
    within = []

    class WithDropout(Toy):
        def modules(self) -> Mapping[str, nn.Module]:
            return {"dropout": dropout}

        def context(self, batch: Batch, randomness: Randomness) -> Batch:
            within.append(dropout.training)
            return batch

    training(WithDropout([0.5], squares), FOUR).advance(1)
    assert within == [True]
    assert not dropout.training
