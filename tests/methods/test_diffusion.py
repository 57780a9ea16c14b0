import pytest
import torch
from torch import Tensor

from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import Draw, mean_square
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.parameters import FullConfig, tune
from tests.tiny_diffusion import PREDICTION_TYPES, batch, tiny_backbone


def plain(prediction_type: str = "epsilon") -> DiffusionMethod:
    backbone = tiny_backbone(prediction_type)
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    return DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values(), lr=0.1))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_denoising_loss(prediction_type: str) -> None:
    """Oracle: DDPM's Eq. 14 by hand: the mean over C, H, W of (eps, v or x_0 minus the network's output)^2, an image at a time."""
    method = plain(prediction_type)
    it = method.context(batch(), Randomness(0))
    objective = method.loss(it)
    alpha_bar = method.backbone.schedule.alphas_cumprod[it.t].float().view(-1, 1, 1, 1)
    wanted = {
        "epsilon": it.eps,
        "sample": it.x_0,
        "v_prediction": alpha_bar.sqrt() * it.eps - (1 - alpha_bar).sqrt() * it.x_0,
    }[prediction_type]
    output = method.backbone.network(alpha_bar.sqrt() * it.x_0 + (1 - alpha_bar).sqrt() * it.eps, it.t).sample
    assert objective.weight == {"denoising": 1.0}
    torch.testing.assert_close(objective.per_sample["denoising"], ((output - wanted) ** 2).mean(dim=(1, 2, 3)))


def test_regularisers_are_added_as_terms() -> None:
    """Oracle: a term of ones with its weight; the denoising term stays what it was, bit for bit."""
    method = plain()

    def regularizer(draw: Draw) -> Objective:
        return Objective({"ones": mean_square(torch.ones_like(draw.prediction))}, {"ones": 0.25})

    alone = method.loss(method.context(batch(), Randomness(0)))
    method.regularizers = (regularizer,)
    both = method.loss(method.context(batch(), Randomness(0)))
    assert torch.equal(both.per_sample["denoising"], alone.per_sample["denoising"])
    assert torch.equal(both.per_sample["ones"], torch.ones(4))
    assert both.weight == {"denoising": 1.0, "ones": 0.25}


def test_the_method_as_the_loop_sees_it() -> None:
    """Oracle: the Method protocol: one phase over all trained parameters, whose optimiser the method owns."""
    method = plain()
    (phase,) = method.phases()
    assert phase.optimizer in method.optimizers()
    held = {id(p) for group in method.optimizers()[phase.optimizer].param_groups for p in group["params"]}
    assert {id(p) for p in phase.parameters} == held == {id(p) for p in method.trained().values()}
    assert list(method.modules().values()) == [method.tuned.network]


def test_a_step_lowers_the_loss_of_its_draw() -> None:
    """Oracle: gradient descent: a small step down the gradient lowers the very loss it came from."""
    method = plain()

    def loss() -> Tensor:
        return method.loss(method.context(batch(), Randomness(0))).per_sample["denoising"].mean()

    before = loss()
    before.backward()
    method.optimizers()["denoiser"].param_groups[0]["lr"] = 1e-3
    method.optimizers()["denoiser"].step()
    assert loss() < before
