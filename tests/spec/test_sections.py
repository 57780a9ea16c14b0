"""The sections: defaults, bounds, documentation."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from fewshot_ray.spec import sections
from fewshot_ray.spec.sections import (
    CrossFit,
    EmaSpec,
    EvaluateSpec,
    FileSpec,
    ResourcesSpec,
    SearchSpec,
    Section,
    SourceSpec,
    TargetSpec,
    TrainSpec,
    parse_constraint,
)

SECTIONS = [item for item in vars(sections).values() if isinstance(item, type) and issubclass(item, Section) and item is not Section]


def fields() -> Iterator[Any]:
    for section in SECTIONS:
        for name, field in section.model_fields.items():
            yield pytest.param(field, id=f"{section.__name__}.{name}")


@pytest.mark.parametrize("field", fields())
def test_every_field_has_one_line_of_documentation(field: Any) -> None:
    """A knob is a typed field with one line about it."""
    assert field.description
    assert field.description.endswith(".")
    assert "\n" not in field.description


def test_a_minimal_file_takes_the_documented_defaults() -> None:
    """Oracle: the defaults written out by hand."""
    spec = FileSpec.model_validate({"name": "a", "source": {"model": "m"}, "target": {"images": "i"}, "method": {"ant": None}})
    assert (spec.seed, spec.storage) == (0, "runs")
    assert spec.target == TargetSpec(images="i", shots=None, split_seed=0, holdout=CrossFit(crossfit=5), test=None)
    assert spec.source.generated_images == 256
    assert spec.train == TrainSpec(
        steps=300, batch_size=40, micro_batch="auto", lr=5e-5, lr_schedule="constant", lr_warmup_steps=0, weight_decay=0.0,
        betas=[0.9, 0.999], gradient_clip=1.0, params="full", precision="fp32", ema=EmaSpec(decay=0.999, warmup=True),
        flip=True,
    )  # fmt: skip
    assert spec.evaluate == EvaluateSpec(
        every=50, samples=256, final_samples=1000, metrics=["holdout_loss"], extractor="auto", extractor_weights=None, lpips_weights=None,
        sampler="ddim", sampler_steps=50, loss_draws=256, grid_images=16, keep_samples=False,
    )  # fmt: skip
    assert spec.search == SearchSpec(
        trials=1, objectives={"holdout_loss": "min"}, constraints={}, sampler="tpe", scheduler=None, confirm=None, concurrent=None,
        retries=2, include_preset=True, include_plain=True,
    )  # fmt: skip
    assert spec.resources == ResourcesSpec(workers=1, gpus_per_worker=0.0, cpus_per_worker=1.0)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (SourceSpec, {}),
        (SourceSpec, {"model": "a", "build": {}}),
        (SourceSpec, {"model": ""}),
        (SourceSpec, {"model": "~nobody-of-that-name/model"}),
        (EvaluateSpec, {"extractor_weights": "a" * 300}),
        (TargetSpec, {"images": "a/" * 2_500}),
        (TargetSpec, {"images": "a", "holdout": ""}),
        (TargetSpec, {"images": "a", "shots": 0}),
        (TargetSpec, {"images": "a", "holdout": True}),
        (TargetSpec, {"images": "a", "holdout": 0}),
        (CrossFit, {"crossfit": 1}),
        (EmaSpec, {"decay": 1.0}),
        (EmaSpec, {"decay": -0.1}),
        (TrainSpec, {"steps": 0}),
        (TrainSpec, {"steps": 3.0}),
        (TrainSpec, {"steps": True}),
        (TrainSpec, {"steps": "3"}),
        (TrainSpec, {"micro_batch": "auto "}),
        (TrainSpec, {"lr": 0}),
        (TrainSpec, {"lr": float("inf")}),
        (TrainSpec, {"lr": float("nan")}),
        (TrainSpec, {"betas": [0.9, 1]}),
        (TrainSpec, {"betas": [0.9, 0.99, 0.9]}),
        (TrainSpec, {"gradient_clip": 0}),
        (TrainSpec, {"params": {"lora": None}}),
        (TrainSpec, {"flip": 1}),
        (EvaluateSpec, {"metrics": []}),
        (EvaluateSpec, {"metrics": ["kid", "kid"]}),
        (SearchSpec, {"objectives": {}}),
        (SearchSpec, {"objectives": {"kid": "least"}}),
        (SearchSpec, {"constraints": {"kid": "0.2"}}),
        (SearchSpec, {"scheduler": {"asha": {"metric": "kid", "grace_steps": 1, "reduction_factor": 1}}}),
        (SearchSpec, {"confirm": {"seeds": [1, 1]}}),
        (ResourcesSpec, {"cpus_per_worker": 0}),
        (ResourcesSpec, {"colour": "red"}),
    ],
)
def test_values_out_of_bounds_are_refused(section: type[BaseModel], values: dict[str, Any]) -> None:
    """One value outside each bound, each type and each rule."""
    with pytest.raises(ValidationError):
        section.model_validate(values)


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (SourceSpec, {"build": {"sample_size": 8}, "images": "embedded://digits/source"}),
        (TargetSpec, {"images": "a", "holdout": "s3://b/c"}),
        (TargetSpec, {"images": "~/a", "test": "s3://" + "b" * 300}),
        (TargetSpec, {"images": "a", "holdout": 2}),
        (TargetSpec, {"images": "a", "holdout": {"crossfit": 2}}),
        (EmaSpec, {"decay": 0}),
        (TrainSpec, {"lr": 1, "micro_batch": 4, "gradient_clip": None, "params": {"lora": {"rank": 8}}, "betas": [0, 0.9]}),
        (EvaluateSpec, {"samples": 0}),
        (ResourcesSpec, {"gpus_per_worker": 0.25}),
    ],
)
def test_values_at_the_bounds_are_taken(section: type[BaseModel], values: dict[str, Any]) -> None:
    """A whole number is a number; the rest is what the file's documentation allows."""
    section.model_validate(values)


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a b", "a\n", "-x", "é", "a" * 101])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    """The name becomes a folder of the storage."""
    with pytest.raises(ValidationError, match="is no name"):
        FileSpec.model_validate({"name": name, "source": {"model": "m"}, "target": {"images": "i"}, "method": {}})


@pytest.mark.parametrize(
    ("text", "bound"),
    [("<= 0.2", ("<=", 0.2)), (">= .1", (">=", 0.1)), (" >=-1e-3 ", (">=", -0.001)), ("<=5", ("<=", 5.0))],
)
def test_parse_constraint_reads_the_operator_and_the_bound(text: str, bound: tuple[str, float]) -> None:
    """Oracle: by hand."""
    assert parse_constraint(text) == bound


@pytest.mark.parametrize("text", ["", "0.2", "< 0.2", "== 1", "<= x", "<= 1 2", "<= nan", "<= 1e999", "<="])
def test_parse_constraint_refuses_what_is_no_bound(text: str) -> None:
    """Only <= and >= with a finite number."""
    with pytest.raises(ValueError, match=r"is not a bound; '<= 0\.2' or '>= 0\.1' is right"):
        parse_constraint(text)


def test_a_section_does_not_change() -> None:
    """A spec that stages are keyed by must stay what it was."""
    with pytest.raises(ValidationError):
        EmaSpec().decay = 0.5
