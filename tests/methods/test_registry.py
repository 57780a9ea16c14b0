"""What every method promises."""

import itertools
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fewshot_ray.data.images import from_model_range
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.ant import AntConfig
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.phase import Objective
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.registry import MethodConfig, Part, declared_ranges
from fewshot_ray.models.parameters import PARAMS, tune
from tests.methods.conftest import DIFFUSION_METHODS, ToyIngredients
from tests.tiny_diffusion import PREDICTION_TYPES, Calls, batch, everything, images, tiny_backbone
from tests.training.toys import training

ENDS = [
    pytest.param(name, {key: end}, id=f"{name}-{key}-{end}")
    for name, registered in DIFFUSION_METHODS.items()
    for key, declared in declared_ranges(registered.config).items()
    for end in declared.endpoints()
]


def quick(name: str, settings: dict[str, Any]) -> MethodConfig:
    """The method's configuration with less preparation."""
    return DIFFUSION_METHODS[name].config(**({"classifier_steps": 2, "classifier_batch": 4} if name == "ant" else {}), **settings)


def compose(parts: list[Part], prediction_type: str = "epsilon", params: str = "full", count_calls: bool = False) -> DiffusionMethod:
    backbone = tiny_backbone(prediction_type)
    tuned = tune(backbone.network, params, PARAMS[params][0](), seed=0)
    for number, parameter in enumerate(tuned.trained.values()):  # away from the source, where some gradients are zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    if count_calls:
        tuned.network = Calls(tuned.network)
    return DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values(), lr=0.1), parts)


def run(method: DiffusionMethod, count: int = 3) -> Objective:
    return everything(method, method.context(batch(count), Randomness(0)))


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
    assert described["sadm"] == {"eta": "log 0.1 .. 100.0"}
    assert described["ddpm_pa"] == {
        "lambda_image": "log 0.1 .. 1.0",
        "lambda_high_frequency": "log 0.1 .. 1.0",
        "lambda_high_frequency_mse": "log 0.01 .. 0.08",
    }
    assert described["mixdl"] == {"lambda_g": "log 100.0 .. 5000.0", "lambda_d": "log 0.1 .. 10.0", "alpha": "log 0.1 .. 10.0"}
    config = AntConfig()
    assert (config.guidance, config.noise_steps, config.noise_step_size) == (5.0, 10, 0.02)


@pytest.mark.parametrize(("name", "settings"), ENDS)
def test_losses_at_the_ends_of_the_ranges(name: str, settings: dict[str, Any], ingredients: ToyIngredients) -> None:
    """Oracle: the contract: a finite float32 loss a sample for every term."""
    check_losses(run(compose([DIFFUSION_METHODS[name].make(quick(name, settings), ingredients)])))


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", DIFFUSION_METHODS)
def test_every_method_on_every_backbone_with_all_params(name: str, prediction_type: str, params: str, ingredients: ToyIngredients) -> None:
    """Oracle: the contract: finite losses, and a gradient for every trained parameter (a softmax key's bias cancels) and no other."""
    method = compose([DIFFUSION_METHODS[name].make(quick(name, {}), ingredients)], prediction_type, params)
    objective = run(method)
    check_losses(objective)
    total(objective).backward()
    for key, parameter in method.trained().items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key
        assert parameter.grad.abs().max() > 0 or key.endswith("to_k.bias"), key
    own = {id(parameter) for parameter in method.trained().values()}
    assert all(p.grad is None for p in method.tuned.network.parameters() if id(p) not in own)


@pytest.mark.parametrize("name", DIFFUSION_METHODS)
def test_the_same_loss_again(name: str, ingredients: ToyIngredients) -> None:
    """Oracle: repetition: making and running a method twice, in another random state, gives the same loss bit for bit."""
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        losses.append(run(compose([DIFFUSION_METHODS[name].make(quick(name, {}), ingredients)])).per_sample)
    assert all(torch.equal(losses[0][term], losses[1][term]) for term in losses[0])


@pytest.mark.parametrize("name", DIFFUSION_METHODS)
def test_micro_batches_give_the_same_step(name: str, ingredients: ToyIngredients) -> None:
    """Oracle: the whole batch at once: two steps in micro-batches of 1, 2 or 3 leave the weights and the loss that one of 4 leaves.

    Adam's first steps are of the size of the learning rate also where a gradient is within rounding of 0: a thousandth of it is allowed.
    """
    lr = 0.01
    results = []
    for micro_batch in (4, 1, 2, 3):
        settings = {"warmup_steps": 1, "eta": 10.0} if name == "sadm" else {}
        method = compose([DIFFUSION_METHODS[name].make(quick(name, settings), ingredients)])
        run_of_it = training(method, from_model_range(images(4)), lr=lr, micro_batch=micro_batch)
        loss = run_of_it.advance(2)
        results.append((loss, {**method.trained(), **method.auxiliary()}))
    for loss, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-4)
        for key, parameter in weights.items():
            torch.testing.assert_close(parameter, results[0][1][key], atol=1e-3 * lr, rtol=1e-4)


COMPOSED = ("ant", "sdft", "sadm", "ddpm_pa")
SUBSETS = [names for count in range(len(COMPOSED) + 1) for names in itertools.combinations(COMPOSED, count)]


def test_all_methods_are_composed() -> None:
    """Oracle: the registry."""
    assert {*COMPOSED, "finetune"} == set(DIFFUSION_METHODS)


@pytest.mark.parametrize("names", SUBSETS, ids="-".join)
def test_any_subset_shares_one_forward_pass(names: tuple[str, ...], ingredients: ToyIngredients) -> None:
    """Oracle: counting networks. Of the student: ant's J = 3 ascents, one at x_t* that all share, sdft's on pure noise.

    Of the teachers: sdft's two, ddpm_pa's one. Of the classifier ant's one; of Psi sadm's two, real and generated.
    """
    parts = {name: DIFFUSION_METHODS[name].make(quick(name, {"noise_steps": 3} if name == "ant" else {}), ingredients) for name in names}
    helpers = counted(parts)
    method = compose(list(parts.values()), count_calls=True)
    it = method.context(batch(3), Randomness(0))
    objective = everything(method, it)
    assert method.tuned.network.count == 1 + 3 * ("ant" in names) + ("sdft" in names)
    assert {name: helper.count for name, helper in helpers.items()} == {
        name: count for name, count in {"ant": 1, "sdft": 2, "sadm": 2, "ddpm_pa": 1}.items() if name in names
    }
    terms = {"ant": set(), "sdft": {"distill", "aux"}, "sadm": {"structure"}, "ddpm_pa": {"pairwise", "pairwise_hf", "hf_mse"}}
    assert set(objective.per_sample) == {"denoising"}.union(*(terms[name] for name in names))
    own = [*method.trained().values()]
    torch.autograd.backward(total(objective), inputs=own)
    assert all(parameter.grad is not None for parameter in own)
    assert all(parameter.grad is None for helper in helpers.values() for parameter in helper.parameters())
    # whatever else there is sees the x_t that ant chose
    torch.testing.assert_close(it.x_t, method.backbone.schedule.add_noise(it.x_0, it.eps, it.t))


def counted(parts: dict[str, Part]) -> dict[str, Calls]:
    """Each method's other network, made to count its passes."""
    owners: dict[str, tuple[Any, str]] = {
        name: {
            "ant": lambda part: (part.selector, "classifier"),
            "sdft": lambda part: (part.regularizer, "teacher"),
            "sadm": lambda part: (part.relation, "psi"),
            "ddpm_pa": lambda part: (part.relation, "teacher"),
        }[name](part)
        for name, part in parts.items()
    }
    for owner, attribute in owners.values():
        setattr(owner, attribute, Calls(getattr(owner, attribute)))
    return {name: getattr(owner, attribute) for name, (owner, attribute) in owners.items()}


def test_mixed_precision_reaches_all_parameters(ingredients: ToyIngredients) -> None:
    """Oracle: the float32 run: autocast's cached weights must not cut the student's graph after the ascent's or the teacher's passes."""
    parts = [DIFFUSION_METHODS[name].make(quick(name, {"noise_steps": 2} if name == "ant" else {}), ingredients) for name in COMPOSED]
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
