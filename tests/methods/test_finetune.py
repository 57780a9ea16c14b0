import copy
from typing import Any

import pytest
import torch

from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.finetune import FinetuneConfig, make_finetune
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.registry import Part
from fewshot_ray.models.parameters import FullConfig, tune
from tests.methods.conftest import DIFFUSION_METHODS, ToyIngredients
from tests.tiny_diffusion import PREDICTION_TYPES, batch, everything, tiny_backbone


def trained(parts: list[Part], prediction_type: str, steps: int = 3) -> dict[str, torch.Tensor]:
    """The weights after a few steps of Adam."""
    backbone = tiny_backbone(prediction_type)
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    method = DiffusionMethod(backbone, tuned, torch.optim.Adam(tuned.trained.values(), lr=1e-3), parts)
    for step in range(steps):
        objective = everything(method, method.context(batch(4, step), Randomness(0)))
        loss = torch.stack([objective.weight[term] * values.mean() for term, values in objective.per_sample.items()]).sum()
        method.optimizers()["denoiser"].zero_grad()
        loss.backward()
        method.optimizers()["denoiser"].step()
    return copy.deepcopy(backbone.network.state_dict())


OFF: dict[str, dict[str, Any]] = {
    "finetune": {},
    "ant": {"noise_steps": 0, "guidance": 0.0},
    "sdft": {"lambda_distill": 0.0, "lambda_aux": 0.0},
    "sadm": {"eta": 0.0},
    "ddpm_pa": {"lambda_image": 0.0, "lambda_high_frequency": 0.0, "lambda_high_frequency_mse": 0.0},
}


def test_it_adds_nothing(ingredients: ToyIngredients) -> None:
    """Oracle: an empty part."""
    assert make_finetune(FinetuneConfig(), ingredients) == Part()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("names", [["ant"], ["sdft"], ["sadm"], ["ddpm_pa"], ["ant", "sdft", "sadm", "ddpm_pa"], ["finetune"]])
def test_methods_turned_off_are_plain_fine_tuning(names: list[str], prediction_type: str, ingredients: ToyIngredients) -> None:
    """Oracle: plain fine-tuning: with every lambda, gamma and J at 0 the weights after three steps are its own, bit for bit."""
    parts = [DIFFUSION_METHODS[name].make(DIFFUSION_METHODS[name].config(**OFF[name]), ingredients) for name in names]
    plain, off = trained([], prediction_type), trained(parts, prediction_type)
    assert all(torch.equal(plain[key], off[key]) for key in plain)


def test_every_method_can_be_turned_off() -> None:
    """Oracle: the registry: a new method states here what turns it off."""
    assert set(OFF) == set(DIFFUSION_METHODS)
