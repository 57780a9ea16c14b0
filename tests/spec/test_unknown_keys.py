"""Keys of other trainers: the answer shows the line that is right."""

from __future__ import annotations

import re

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.spec.expected import expected_at
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.unknown_keys import BELOW, ELSEWHERE
from fewshot_ray.trial.fields import checked_document, vocabulary

HEAD = {"name": "quick", "source": "{model: m}", "target": "{images: ten}", "method": "{sdft: {}}"}


def refusal(**sections: str) -> list[str]:
    """What is said of a file with these sections, without the file's name."""
    text = "\n".join(f"{key}: {value}" for key, value in {**HEAD, **sections}.items() if value != "(none)")
    with pytest.raises(UserError) as refused:
        checked_document(text, "x.yaml")
    return [re.sub(r"^x\.yaml, line \d+: ", "", line) for line in refused.value.lines]


@pytest.mark.parametrize(
    ("section", "text", "line"),
    [
        ("methods", "{ant: {}}", "`method: {ant: {}}`"),
        ("method", "[ant, sdft]", "`method: {ant: {}, sdft: {}}`"),
        ("method", "ant", "`method: {ant: {}}`"),
        ("method", "[{ant: {noise_steps: 3}}, {sdft: {}}]", "`method: {ant: {noise_steps: 3}, sdft: {}}`"),
        ("ant", "{noise_steps: 3}", "`method: {ant: {noise_steps: 3}}`"),
        ("epochs", "10", "`train: {steps: 300}`"),
        ("train", "{epochs: 10}", "`steps: 300`"),
        ("train", "{learning_rate: 1e-4}", "`lr: 0.0001`"),
        ("learning_rate", "1e-4", "`train: {lr: 0.0001}`"),
        ("batch", "8", "`train: {batch_size: 8}`"),
        ("train", "{batch: 8}", "`batch_size: 8`"),
        ("train", "{num_train_steps: 500}", "`steps: 500`"),
        ("train", "{max_train_steps: 500}", "`steps: 500`"),
        ("train", "{lora_rank: 8}", "`params: {lora: {rank: 8}}`"),
        ("train", "{lora: {r: 8}}", "`params: {lora: {rank: 8}}`"),
        ("train", "{params: {lora: {r: 8}}}", "`rank: 8`"),
        ("lora", "{r: 8}", "`train: {params: {lora: {rank: 8}}}`"),
        ("train", "{params: {lora: {lora_alpha: 8}}}", "`alpha: 8`"),
        ("train", "{mixed_precision: fp16}", "`precision: 'bf16'`"),
        ("train", "{gradient_accumulation_steps: 4}", "`micro_batch: 'auto'`"),
        ("source", "{pretrained_model_name_or_path: m}", "`model: 'm'`"),
        ("target", "{images: ten, instance_data_dir: ten}", "`images: 'ten'`"),
        ("search", "{n_trials: 12}", "`trials: 12`"),
        ("train", "{optimizer: adam}", "leave it out"),
        ("parameters", "{lr: {values: [1, 2]}}", "`train: {lr: {log: [1e-5, 3e-4]}}`"),
        ("output_dir", "out", "`storage: 'out'`"),
        ("training", "{lr: 1e-4}", "`train: {lr: 0.0001}`"),
    ],
)
def test_the_right_line_is_shown(section: str, text: str, line: str) -> None:
    """Oracle: lines written by hand."""
    said = [message for message in refusal(**{section: text}) if message.startswith(section)]
    assert len(said) == 1
    assert line in said[0], said


def test_a_missing_field_that_stands_under_another_name_is_said_once() -> None:
    """Oracle: the count of lines."""
    assert len(refusal(method="(none)", methods="{ant: {}}")) == 1
    assert len(refusal(target="{dataset: ten}")) == 1


def test_every_counterpart_is_a_field() -> None:
    """Oracle: the file's own models: a field that is renamed must be renamed in the table of names too."""
    params = vocabulary().params
    for name, meant in ELSEWHERE.items():
        keys = meant.path.split(".") if meant.path else []
        if keys[:2] == ["train", "params"]:
            config = params[keys[2]]
            assert config is not None
            assert keys[3:] == [] or keys[3] in config.model_fields, name
        elif keys:
            assert expected_at(FileSpec, keys), name
            assert name != keys[-1] or len(keys) > 1, name
    for section, names in BELOW.items():
        first, *rest = section.split(".")
        config = vocabulary().methods[rest[0]] if first == "method" else params[rest[1]]
        assert config is not None
        assert set(names.values()) <= set(config.model_fields), section
