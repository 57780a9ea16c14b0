"""Ranges as other tools spell them: the answer shows the line of a run's file."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import parse_document
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.validate import section_problems
from fewshot_ray.trial.fields import checked_document, vocabulary

FILE = """\
name: quick
source: {{model: m}}
target: {{images: ten}}
method: {method}
train: {train}
search: {{trials: 3}}
"""

SPELLINGS = [
    ("lr", "{loguniform: [1e-5, 3e-4]}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{log_uniform: [1e-5, 3e-4]}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{uniform: [0.1, 0.5]}", FloatRange(0.1, 0.5)),
    ("lr", "{quniform: [0.1, 0.5, 0.1]}", FloatRange(0.1, 0.5)),
    ("lr", "{uniform: {low: 0.1, high: 0.5}}", FloatRange(0.1, 0.5)),
    ("lr", "{min: 0.1, max: 1}", FloatRange(0.1, 1)),
    ("lr", "{min: 1, max: 3}", FloatRange(1, 3)),
    ("lr", "{min: 1e-5, max: 3e-4, distribution: log_uniform_values}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{distribution: log_uniform, min: -9.21, max: -2.3}", FloatRange(0.0001, 0.1, log=True)),
    ("lr", "{distribution: uniform, min: 0.1, max: 0.5}", FloatRange(0.1, 0.5)),
    ("lr", "{low: 1e-5, high: 3e-4, log: true}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{type: float, low: 1e-5, high: 3e-4, log: true}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{lower: 1e-5, upper: 3e-4, scale: log}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{log: {min: 1e-5, max: 3e-4}}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{suggest_float: {low: 1e-5, high: 3e-4, log: true}}", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "{values: [1e-5, 1e-4]}", Choice((1e-5, 1e-4))),
    ("lr", "{distribution: categorical, values: [1e-5, 1e-4]}", Choice((1e-5, 1e-4))),
    ("lr", "{grid_search: [1e-5, 1e-4, 1e-3]}", Choice((1e-5, 1e-4, 1e-3))),
    ("lr", "{categorical: [1e-5, 1e-4]}", Choice((1e-5, 1e-4))),
    ("lr", "'tune.loguniform(1e-5, 3e-4)'", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "'tune.grid_search([1e-5, 1e-4])'", Choice((1e-5, 1e-4))),
    ("lr", "[1e-5, 3e-4]", FloatRange(1e-5, 3e-4, log=True)),
    ("lr", "[0.1, 0.5]", FloatRange(0.1, 0.5)),
    ("lr", "[1e-5, 1e-4, 1e-3]", Choice((1e-5, 1e-4, 1e-3))),
    ("steps", "{min: 100, max: 300}", IntRange(100, 300)),
    ("steps", "{randint: [100, 300]}", IntRange(100, 300)),
    ("steps", "{int_uniform: [100, 300]}", IntRange(100, 300)),
    ("steps", "{low: 100, high: 300, step: 50}", IntRange(100, 300)),
    ("steps", "{lograndint: [100, 3000]}", IntRange(100, 3000)),
    ("steps", "{uniform: [100, 300]}", IntRange(100, 300)),
    ("steps", "[100, 300]", IntRange(100, 300)),
    ("params", "{values: [full, lora]}", Choice(("full", "lora"))),
    ("params", "[full, lora]", Choice(("full", "lora"))),
    ("params", "{choices: [full, lora]}", Choice(("full", "lora"))),
    ("ema", "{decay: {min: 0.9, max: 0.99}}", FloatRange(0.9, 0.99)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "given", "right"), SPELLINGS)
def test_the_right_line_is_shown_and_can_be_read(field: str, given: str, right: Any) -> None:
    """Oracle: the range by hand; and the line itself, put into the file in the place of what was given, makes it valid."""
    with pytest.raises(UserError) as refused:
        checked_document(FILE.format(method="{sdft: {}}", train=f"{{{field}: {given}}}"), "x.yaml")
    (line,) = refused.value.lines
    shown = re.search(r"`([^`]*)` (?:is right|for a range)", line)
    assert shown, line
    wrapped = f"ema: {{{shown[1]}}}" if field == "ema" else shown[1]
    corrected = checked_document(FILE.format(method="{sdft: {}}", train=f"{{{wrapped}}}"), "x.yaml")
    train = corrected.tree["train"]
    assert (train["ema"]["decay"] if field == "ema" else train[field]) == right


def test_the_type_of_a_methods_field_is_known() -> None:
    """Oracle: noise_steps takes whole numbers, guidance any; nothing is said twice of an error below a method."""
    with pytest.raises(UserError) as refused:
        checked_document(FILE.format(method="{ant: {noise_steps: {min: 1, max: 9}, guidance: {min: 1, max: 9}}}", train="{}"), "x.yaml")
    assert [line.partition("`")[2] for line in refused.value.lines] == [
        "noise_steps: {int: [1, 9]}` is right",
        "guidance: {float: [1, 9]}` is right",
    ]


def test_what_has_no_ends_shows_their_places() -> None:
    """Oracle: by hand; ends the wrong way round, text for numbers, a distribution that there is none of."""
    for given in ("{uniform: [3, 1]}", "{min: 3, max: 1}", "'tune.uniform(low, high)'"):
        with pytest.raises(UserError, match=r"`lr: \{float: \[low, high\]\}` is right"):
            checked_document(FILE.format(method="{sdft: {}}", train=f"{{lr: {given}}}"), "x.yaml")
    for given in ("{normal: [0, 1]}", "{min: a, max: b}", "{min: 3}", "{}", "'normal(0, 1)'"):
        with pytest.raises(UserError, match=r"train\.lr"):
            checked_document(FILE.format(method="{sdft: {}}", train=f"{{lr: {given}}}"), "x.yaml")


def test_no_field_is_named_as_a_distribution_is() -> None:
    """Oracle: the settings below method and train as they stand; one named `values`, say, would be taken for a range."""
    words = vocabulary()
    mapped = [words.methods, words.params, words.recipes]
    for name, config in (item for table in mapped for item in table.items()):
        assert config is not None
        for field in config.model_fields:
            document = parse_document(FILE.format(method="{sdft: {}}", train="{}"), "x.yaml")
            document.tree["method"] = {name: {field: [1, 2]}}
            assert not [problem for problem in section_problems(document) if "how other tools" in problem.message]


def test_exponents_are_those_of_e() -> None:
    """Oracle: math.exp."""
    with pytest.raises(UserError) as refused:
        checked_document(FILE.format(method="{sdft: {}}", train="{lr: {distribution: log_uniform, min: -10, max: -8}}"), "x.yaml")
    assert f"{{log: [{math.exp(-10):.3g}, {float(f'{math.exp(-8):.3g}')}]}}" in str(refused.value)
