"""The held-out loss over fixed draws, samples from fixed noise, and what can be measured at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.data.digits import digits
from fewshot_ray.data.images import ImageSet, to_model_range
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.training.group import Group
from fewshot_ray.trial.denoising import DiffusionCandidate, HoldoutLoss
from fewshot_ray.trial.evaluation import Evaluator, Instruments, check_evaluation, extractor_name
from tests.conftest import Workers
from tests.tiny_diffusion import tiny_backbone
from tests.training.toys import CPU, Worker
from tests.trial.tiny import trial


class Zero(nn.Module):
    """Predicts 0 everywhere and keeps the timesteps it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, t: Tensor, class_labels: None = None) -> Any:
        self.seen.append(t)
        return SimpleNamespace(sample=torch.zeros_like(x_t))


def image_set(images: Tensor, start: int) -> ImageSet:
    names = tuple(f"{index}" for index in range(start, start + len(images)))
    return ImageSet(images, names, names)


def fold(train: int = 3, holdout: int = 5) -> Fold:
    shots = digits("shots").images
    return Fold("holdout", image_set(shots[:train], 0), image_set(shots[train : train + holdout], train))


def evaluator(seed: int = 0, holdout: int = 5, **settings: Any) -> Evaluator:
    config = EvaluateSpec(**{"samples": 4, "sampler_steps": 2, "grid_images": 3, "loss_draws": 12, **settings})
    instruments = Instruments(config, channels=1, size=(8, 8), device=CPU)
    held_out = fold(holdout=holdout)
    own = HoldoutLoss(config, held_out, seed=seed, device=CPU, group=Group())
    return Evaluator(config, held_out, instruments, own, seed=seed, device=CPU, group=Group())


def loss_of(measuring: Evaluator) -> HoldoutLoss:
    assert isinstance(measuring.own, HoldoutLoss)
    return measuring.own


def candidate(backbone: Backbone) -> DiffusionCandidate:
    return DiffusionCandidate(backbone, backbone.network)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_loss_of_a_network_that_says_nothing(prediction_type: str) -> None:
    """Oracle: the mean square of what it should have said, from the draws themselves in float64; 12 draws over 5 images are 15."""
    measuring, backbone = evaluator(), tiny_backbone(prediction_type)
    index, t, eps = loss_of(measuring)._noisings(backbone)
    assert torch.equal(index.bincount(), torch.full((5,), 3))
    x_0 = to_model_range(measuring.fold.holdout.images)[index].double()
    alpha_bar = backbone.schedule.alphas_cumprod[t].double().view(-1, 1, 1, 1)
    target = {
        "epsilon": eps.double(),
        "sample": x_0,
        "v_prediction": alpha_bar.sqrt() * eps.double() - (1 - alpha_bar).sqrt() * x_0,
    }[prediction_type]
    assert loss_of(measuring).losses(backbone, Zero()).mean == pytest.approx(float(target.square().mean()), rel=1e-5)


def test_the_timesteps_are_spread_evenly() -> None:
    """Oracle: 20 draws of 1,000 timesteps put one into each 50, in no order of the images'."""
    network = Zero()
    loss_of(evaluator(loss_draws=20)).losses(tiny_backbone(), network)
    t = torch.cat(network.seen)
    assert sorted((t // 50).tolist()) == list(range(20))
    assert t.tolist() != sorted(t.tolist())


def test_the_loss_is_the_same_each_time_and_whatever_was_drawn_before() -> None:
    """Oracle: itself; another evaluation seed gives another value."""
    backbone = tiny_backbone()
    first = loss_of(evaluator()).losses(backbone, backbone.network).mean
    torch.manual_seed(123)
    torch.randn(5)
    assert loss_of(evaluator()).losses(backbone, backbone.network).mean == first
    assert loss_of(evaluator(seed=1)).losses(backbone, backbone.network).mean != first


def _alone() -> float:
    backbone = tiny_backbone()
    measuring = evaluator()
    measuring.group = Worker()
    loss_of(measuring).group = Worker()
    return loss_of(measuring).losses(backbone, backbone.network).mean


def test_other_processes_draw_the_same(workers: Workers) -> None:
    """Oracle: this process, to the last bit; the workers here don't know of each other."""
    assert workers.run(_alone) == [_alone()] * 2


def test_trials_of_other_seeds_and_methods_share_the_draws(tmp_path: Any) -> None:
    """Oracle: one network measured by the trials' own evaluators."""
    backbone = tiny_backbone()
    trials = [trial(tmp_path, seed=seed, method=method) for seed, method in [(0, {"finetune": {}}), (8, {"sdft": {}})]]
    losses = {loss_of(run.evaluators[0]).losses(backbone, backbone.network).mean for run in trials}
    samples = [run.evaluators[0].draw_samples(candidate(backbone), 4) for run in trials]
    assert len(losses) == 1
    assert torch.equal(*samples)


def test_samples_come_from_the_first_of_one_stream_of_noise() -> None:
    """Oracle: the first of more are the same, to a rounding of uint8 that the batch's size may turn."""
    backbone = tiny_backbone()
    six = evaluator().draw_samples(candidate(backbone), 6)
    assert six.dtype == torch.uint8
    assert six.shape == (6, 1, 8, 8)
    for asked in (4, 1):
        fewer = evaluator().draw_samples(candidate(backbone), asked)
        assert len(fewer) == asked
        assert (fewer.int() - six[:asked].int()).abs().max() <= 1
    assert not torch.equal(six[0], six[1])


def test_metrics_are_of_as_many_samples_as_asked_for() -> None:
    """Oracle: the suite on the first four, though the grid shows nine."""
    backbone = tiny_backbone()
    measuring = evaluator(metrics=["holdout_loss", "fd", "pairwise_distance"], grid_images=9)
    measured = measuring.measure(candidate(backbone), samples=4, grid=True)
    assert measured.samples is not None
    assert len(measured.samples) == 9
    assert measuring.suite is not None
    expected = measuring.suite.compute(measured.samples[:4])
    unseen = measuring.measure(candidate(backbone), samples=4).samples
    assert unseen is not None
    assert len(unseen) == 4
    losses = loss_of(measuring).losses(backbone, backbone.network)
    assert measured.metrics == {"holdout_loss": losses.mean, **losses.bands(), **expected}
    stamp = measuring.protocol(4)
    assert (stamp["n_generated"], stamp["n_real"], stamp["loss_draws"], stamp["sampler"]) == (4, 5, 12, "ddim")


def test_no_samples_are_drawn_where_nobody_looks() -> None:
    """Oracle: the loss alone."""
    backbone = tiny_backbone()
    measured = evaluator(grid_images=0).measure(candidate(backbone), samples=4)
    assert measured.samples is None
    assert list(measured.metrics) == ["holdout_loss", "loss_coarse", "loss_content", "loss_cleanup"]


def _measured(holdout: int, count: int) -> tuple[float, Tensor]:
    backbone = tiny_backbone()
    measuring = evaluator(holdout=holdout, loss_draws=1, grid_images=0)
    return loss_of(measuring).losses(backbone, backbone.network).mean, measuring.draw_samples(candidate(backbone), count)


@pytest.mark.parametrize(("holdout", "count"), [(5, 5), (1, 1)])
def test_two_workers_measure_the_same(workers: Workers, holdout: int, count: int) -> None:
    """Oracle: one worker; with one image, the second worker has nothing to do."""
    loss, samples = _measured(holdout, count)
    for other_loss, other_samples in workers.run(_measured, holdout, count):
        assert other_loss == pytest.approx(loss, rel=1e-6)
        # A rounding may fall to the other side, no more.
        assert (other_samples.int() - samples.int()).abs().max() <= 1


@pytest.mark.parametrize(
    ("settings", "holdout", "message"),
    [
        ({"metrics": ["kid"]}, 1, "kid needs 2 held-out images, a fold has 1"),
        ({"metrics": ["holdout_loss", "intra_distance"], "samples": 3}, 2, "3 are too few for intra_distance; more than the 3"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_training(settings: dict[str, Any], holdout: int, message: str) -> None:
    """Oracle: a UserError of one line."""
    with pytest.raises(UserError, match=message) as refused:
        check_evaluation(EvaluateSpec(**settings), [fold(holdout=holdout)])
    assert "\n" not in str(refused.value)


def test_what_can_be_measured_passes() -> None:
    """Oracle: no error at the least numbers."""
    check_evaluation(EvaluateSpec(metrics=["kid", "intra_distance"], samples=4), [fold(holdout=2)])
    check_evaluation(EvaluateSpec(), [fold(holdout=1)])


def test_the_extractor_follows_the_images() -> None:
    """Oracle: digits at 8x8 grey, Inception for others, a named one as named."""
    assert extractor_name(EvaluateSpec(), 1, (8, 8)) == "digits"
    assert extractor_name(EvaluateSpec(), 1, (16, 16)) == "inception"
    assert extractor_name(EvaluateSpec(), 3, (8, 8)) == "inception"
    assert extractor_name(EvaluateSpec(extractor="inception"), 1, (8, 8)) == "inception"
