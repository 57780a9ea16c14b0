"""What every method promises."""

import copy
import itertools
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fewshot_ray.methods import METHODS
from fewshot_ray.methods.ant import AntConfig
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.registry import MethodConfig, Part, declared_ranges
from fewshot_ray.models.parameters import PARAMS, tune
from tests.methods.conftest import ToyIngredients
from tests.tiny_diffusion import PREDICTION_TYPES, Calls, batch, tiny_backbone, tiny_unet

ENDS = [
    pytest.param(name, {key: end}, id=f"{name}-{key}-{end}")
    for name, registered in METHODS.items()
    for key, declared in declared_ranges(registered.config).items()
    for end in declared.endpoints()
]


def quick(name: str, settings: dict[str, Any]) -> MethodConfig:
    """The method's configuration with less preparation."""
    return METHODS[name].config(**({"classifier_steps": 2, "classifier_batch": 4} if name == "ant" else {}), **settings)


def compose(parts: list[Part], prediction_type: str = "epsilon", params: str = "full", count_calls: bool = False) -> DiffusionMethod:
    backbone = tiny_backbone(prediction_type)
    tuned = tune(backbone.unet, params, PARAMS[params][0](), seed=0)
    for number, parameter in enumerate(tuned.trained.values()):  # away from the source, where some gradients are zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    if count_calls:
        tuned.network = Calls(tuned.network)
    selectors = [part.selector for part in parts if part.selector]
    regularizers = [part.regularizer for part in parts if part.regularizer]
    optimizer = torch.optim.SGD(tuned.trained.values(), lr=0.1)
    return DiffusionMethod(backbone, tuned, optimizer, selector=selectors[0] if selectors else None, regularizers=regularizers)


def run(method: DiffusionMethod, count: int = 3) -> Objective:
    return method.loss(method.context(batch(count), Randomness(0)))


def total(objective: Objective) -> torch.Tensor:
    return torch.stack([objective.weight[term] * loss.sum() for term, loss in objective.per_sample.items()]).sum()


def check_losses(objective: Objective, count: int = 3) -> None:
    for term, loss in objective.per_sample.items():
        assert loss.shape == (count,), term
        assert loss.dtype == torch.float32, term
        assert bool(loss.isfinite().all()), term
        assert term in objective.weight


@pytest.mark.parametrize("name", METHODS)
def test_settings(name: str) -> None:
    """Oracle: the declared ranges: defaults lie inside, both ends are valid; unknown keys, text, infinities refused; all documented."""
    config = METHODS[name].config
    for key, declared in declared_ranges(config).items():
        assert declared.contains(getattr(config(), key)), key
        for end in declared.endpoints():
            assert getattr(config(**{key: end}), key) == end
        for wrong in ("1", float("inf"), float("nan"), None, -1):
            with pytest.raises(ValidationError):
                config(**{key: wrong})
    assert all(field.description for field in config.model_fields.values())
    with pytest.raises(ValidationError):
        config(no_such_setting=1)


def test_ranges_of_the_papers() -> None:
    """Oracle: the ranges of the four methods' notes, by hand."""
    described = {name: {key: item.describe() for key, item in declared_ranges(entry.config).items()} for name, entry in METHODS.items()}
    assert described["finetune"] == {}
    assert described["ant"] == {"noise_steps": "int 1 .. 20", "noise_step_size": "log 0.005 .. 0.1", "guidance": "float 0.0 .. 10.0"}
    assert described["sdft"] == {
        "lambda_distill": "log 0.01 .. 1.0",
        "gamma_distill": "log 0.5 .. 10.0",
        "lambda_aux": "log 0.01 .. 1.0",
        "gamma_aux": "log 5.0 .. 150.0",
    }
    config = AntConfig()
    assert (config.guidance, config.noise_steps, config.noise_step_size) == (5.0, 10, 0.02)


@pytest.mark.parametrize(("name", "settings"), ENDS)
def test_losses_at_the_ends_of_the_ranges(name: str, settings: dict[str, Any], ingredients: ToyIngredients) -> None:
    """Oracle: the contract: a finite float32 loss a sample for every term."""
    check_losses(run(compose([METHODS[name].make(quick(name, settings), ingredients)])))


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_on_every_backbone_with_all_params(name: str, prediction_type: str, params: str, ingredients: ToyIngredients) -> None:
    """Oracle: the contract: finite losses, and a gradient for every trained parameter (a softmax key's bias cancels) and no other."""
    method = compose([METHODS[name].make(quick(name, {}), ingredients)], prediction_type, params)
    objective = run(method)
    check_losses(objective)
    total(objective).backward()
    for key, parameter in method.trained().items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert parameter.grad.abs().max() > 0 or key.endswith("to_k.bias"), key
    own = {id(parameter) for parameter in method.trained().values()}
    assert all(p.grad is None for p in method.tuned.network.parameters() if id(p) not in own)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_loss_again(name: str, ingredients: ToyIngredients) -> None:
    """Oracle: repetition: making and running a method twice, in another random state, gives the same loss bit for bit."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(run(compose([METHODS[name].make(quick(name, {}), ingredients)])).per_sample)
    assert all(torch.equal(losses[0][term], losses[1][term]) for term in losses[0])


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up(name: str, ingredients: ToyIngredients) -> None:
    """Oracle: the whole batch at once: an image's losses don't depend on which micro-batch it is in."""
    method = compose([METHODS[name].make(quick(name, {}), ingredients)])
    whole = batch(4)
    together = method.loss(method.context(whole, Randomness(0))).per_sample
    for rows in ([0, 1], [2, 3]):
        part = type(whole)(whole.x_0[rows], whole.positions[rows], 4, whole.step)
        apart = method.loss(method.context(part, Randomness(0))).per_sample
        for term, loss in apart.items():
            torch.testing.assert_close(loss, together[term][rows], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("names", list(itertools.chain(itertools.combinations(sorted(set(METHODS) - {"finetune"}), 2))))
def test_methods_compose_without_a_further_forward_pass(names: tuple[str, ...], ingredients: ToyIngredients) -> None:
    """Oracle: counting networks: of ant and sdft together, J for the ascent, one at x_t* that both share, one on pure noise."""
    assert names == ("ant", "sdft")
    ant, sdft = METHODS["ant"].make(quick("ant", {"noise_steps": 3}), ingredients), METHODS["sdft"].make(quick("sdft", {}), ingredients)
    assert sdft.regularizer is not None
    teacher, classifier = Calls(tiny_unet(1)), Calls(ant.selector.classifier)  # type: ignore[union-attr]
    sdft.regularizer.teacher, ant.selector.classifier = teacher, classifier  # type: ignore[union-attr]
    method = compose([ant, sdft], count_calls=True)
    it = method.context(batch(3), Randomness(0))
    objective = method.loss(it)
    assert (method.tuned.network.count, teacher.count, classifier.count) == (3 + 1 + 1, 2, 1)
    assert set(objective.per_sample) == {"denoising", "distill", "aux"}
    total(objective).backward()
    for frozen_network in (teacher, classifier):
        assert all(parameter.grad is None for parameter in frozen_network.parameters())
    # sdft is taught at the x_t that ant chose
    expected = copy.copy(it.x_t)
    torch.testing.assert_close(expected, method.backbone.schedule.add_noise(it.x_0, it.eps, it.t))


def test_mixed_precision_reaches_all_parameters(ingredients: ToyIngredients) -> None:
    """Oracle: the float32 run: autocast's cached weights must not cut the student's graph after the ascent's or the teacher's passes."""
    parts = [METHODS[name].make(quick(name, {"noise_steps": 2} if name == "ant" else {}), ingredients) for name in ("ant", "sdft")]
    exact = compose(parts)
    total(run(exact)).backward()
    mixed = compose(parts)
    with torch.autocast("cpu", torch.bfloat16):
        objective = run(mixed)
    check_losses(objective)
    total(objective).backward()
    for (key, a), b in zip(exact.trained().items(), mixed.trained().values(), strict=True):
        assert a.grad is not None
        assert b.grad is not None, key
        if not key.endswith("to_k.bias"):
            assert torch.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0) > 0.9, key
