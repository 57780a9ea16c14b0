"""From a file to typed trials, and what is refused on the way."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.methods.ant import AntConfig
from fewshot_ray.methods.sdft import SdftConfig
from fewshot_ray.models.parameters import LoraParamsConfig
from fewshot_ray.spec.document import parse_document, ranges
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.trial.compose import check_document, compose, expand, middle, plain, preset_values, with_values
from tests.trial.tiny import document, spec

LOG = FloatRange(1e-5, 1e-3, log=True)


def refusal(**sections: Any) -> str:
    with pytest.raises(UserError) as refused:
        check_document(document(**sections))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": {"sdtf": {}}}, ["method.sdtf", "finetune, ", "did you mean sdft?"]),
        ({"method": {"sdtf": "search"}}, ["method.sdtf", "did you mean sdft?"]),
        ({"method": {"qqqq": {}}}, ["method.qqqq", "finetune, ", "would be right"]),
        ({"method": {}}, ["method", "none is given"]),
        ({"method": {"finetune": {}, "sdft": {}}}, ["method.finetune", "can't be combined"]),
        ({"method": {"sdft": {"lambda": 1.0}}}, ["method.sdft.lambda"]),
        ({"method": {"ant": {"guidance": -1.0}}}, ["method.ant.guidance", "-1.0"]),
        ({"method": {"ant": {"guidance": FloatRange(-1.0, 2.0)}}}, ["method.ant.guidance", "-1.0"]),
        ({"method": {"ant": {"noise_norm": Choice(("sample", "simple"))}}}, ["method.ant.noise_norm", "simple"]),
        ({"train": {"params": "lorra"}}, ["train.params", "'lorra'", "did you mean lora?"]),
        ({"train": {"params": {"lora": {"rank": 0}}}}, ["train.params.lora.rank", "0"]),
        ({"train": {"params": {"lora": {}, "adaptor": {}}}}, ["train.params", "2 ways"]),
        ({"train": {"params": Choice(("full", "bitfitt"))}}, ["train.params", "bitfitt"]),
        (
            {"evaluate": {"metrics": ["holdout_los"]}, "search": {"objectives": {"holdout_los": "min"}}},
            ["evaluate.metrics", "holdout_loss"],
        ),
        ({"search": {"objectives": {"holdout_loss": "max"}}}, ["search.objectives.holdout_loss", "'max'", "'min'"]),
        ({"evaluate": {"metrics": ["fd"]}, "search": {"objectives": {"kid": "min"}}}, ["search.objectives.kid", "evaluate.metrics"]),
        ({"evaluate": {"metrics": ["holdout_loss", "kid"], "samples": 1}}, ["evaluate.samples", "1"]),
        ({"evaluate": {"every": FloatRange(1.0, 2.0)}}, ["evaluate.every", "comparable"]),
    ],
)
def test_refusals(sections: dict[str, Any], words: list[str]) -> None:
    """Oracle: one line that names the field, the value and what would be right."""
    message = refusal(**sections)
    assert message.startswith("tiny.yaml")
    assert all(word in message for word in words), message
    assert "None" not in message


def test_a_single_trial_has_no_ranges() -> None:
    """Oracle: UserError for a range and for 'search'; sections that don't fit each other too."""
    for sections in ({"method": {"sdft": "search"}}, {"method": {"sdft": {"gamma_aux": LOG}}}, {"train": {"lr": LOG}}):
        with pytest.raises(UserError, match=r"^tiny\.yaml"):
            compose(document(**sections))
    with pytest.raises(UserError, match=r"search.objectives.fd"):
        compose(document(search={"objectives": {"fd": "min"}}))


def test_search_stands_for_the_ranges_declared_beside_the_fields() -> None:
    """Oracle: the ranges as they stand in the methods' files."""
    expanded, _ = check_document(document(method={"sdft": "search", "ant": None}, train={"params": {"lora": "search"}}))
    assert ranges(expanded.tree) == {
        "method.sdft.lambda_distill": FloatRange(0.01, 1.0, log=True),
        "method.sdft.gamma_distill": FloatRange(0.5, 10.0, log=True),
        "method.sdft.lambda_aux": FloatRange(0.01, 1.0, log=True),
        "method.sdft.gamma_aux": FloatRange(5.0, 150.0, log=True),
        "train.params.lora.rank": IntRange(2, 32),
    }
    assert expand(expanded).tree == expanded.tree


def test_search_is_read_from_a_file_too() -> None:
    """Oracle: the same from YAML; the original document keeps its words."""
    text = "name: x\nsource: {model: m}\ntarget: {images: ten}\nmethod: {sdft: search}\n"
    original = parse_document(text, "x.yaml")
    assert len(ranges(expand(original).tree)) == 4
    assert original.tree["method"] == {"sdft": "search"}


def test_composed_configurations() -> None:
    """Oracle: given values where given, defaults elsewhere; the file's seed unless another is given."""
    composed = spec(method={"ant": {"noise_steps": 2}, "sdft": None}, train={"params": {"lora": {"rank": 4}}})
    assert composed.methods == {"ant": AntConfig(noise_steps=2), "sdft": SdftConfig()}
    assert (composed.params, composed.params_config) == ("lora", LoraParamsConfig(rank=4))
    assert (composed.seed, composed.refit_steps) == (0, None)
    other = spec(seed=3, refit_steps=2)
    assert (other.seed, other.file.seed, other.refit_steps, other.params) == (3, 0, 2, "full")


def test_the_preset_is_the_papers_for_methods_and_the_default_or_middle_elsewhere() -> None:
    """Oracle: SDFT's gamma_aux is 50, the nearer end where 50 is outside; lr's default 5e-5 is in the range, a middle is geometric."""
    tree = document(
        method={"sdft": {"gamma_aux": FloatRange(5.0, 150.0), "lambda_aux": FloatRange(0.5, 1.0)}, "ant": {"noise_steps": IntRange(1, 4)}},
        train={
            "lr": LOG,
            "weight_decay": FloatRange(0.01, 1.0, log=True),
            "batch_size": IntRange(2, 5),
            "params": Choice(("lora", "full")),
            "precision": Choice(("bf16",)),
            "ema": {"decay": FloatRange(0.5, 0.9995)},
            "betas": [FloatRange(0.5, 0.7), 0.99],
        },
    )
    named = document(
        train={"lr": FloatRange(1e-5, 1e-3, log=True, preset=2e-5)}, method={"sdft": {"lambda_aux": FloatRange(0, 1, preset=0.3)}}
    )
    assert preset_values(named) == {"train.lr": 2e-5, "method.sdft.lambda_aux": 0.3}
    preset = preset_values(tree)
    assert preset == {
        "method.sdft.gamma_aux": 50.0,
        "method.sdft.lambda_aux": 0.5,
        "method.ant.noise_steps": 4,
        "train.lr": 5e-5,
        "train.weight_decay": pytest.approx(0.1),
        "train.batch_size": 3,
        "train.params": "full",
        "train.precision": "bf16",
        "train.ema.decay": 0.999,
        "train.betas.0": pytest.approx(0.6),
    }
    composed = compose(with_values(tree, preset))
    assert composed.file.train.ema.decay == 0.999
    assert composed.methods["sdft"] == SdftConfig(lambda_aux=0.5)


def test_middles() -> None:
    """Oracle: geometric, arithmetic, rounded down, first."""
    assert middle(LOG) == pytest.approx(1e-4)
    assert middle(FloatRange(0.0, 10.0)) == 5.0
    assert middle(IntRange(1, 4)) == 2
    assert middle(Choice(("b", "a"))) == "b"
    assert math.isfinite(middle(FloatRange(1e-300, 1e300, log=True)))


def test_plain_is_the_same_run_without_methods() -> None:
    """Oracle: the tree with another method, its `train` ranges kept."""
    tree = document(method={"sdft": "search"}, train={"lr": LOG})
    control = plain(tree)
    assert control.tree == {**tree.tree, "method": {"finetune": {}}}
    assert list(ranges(control.tree)) == ["train.lr"]
    assert list(compose(with_values(control, {"train.lr": 1e-4})).methods) == ["finetune"]
