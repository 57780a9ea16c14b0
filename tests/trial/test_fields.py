"""A file's fields, known without importing torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from fewshot_ray.errors import UserError
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.registry import declared_ranges
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.models.adm import AdmConfig
from fewshot_ray.models.gan_source import GANS
from fewshot_ray.models.parameters import PARAMS
from fewshot_ray.spec import declared
from fewshot_ray.spec.expected import Expected, describe
from fewshot_ray.trial.fields import checked_document, vocabulary
from fewshot_ray.trial.gan_settings import RECIPES

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "diffusers", "ray", "optuna", "transformers", "torchvision", "peft")
FILE = """\
name: quick
source: {model: m}
target: {images: ten}
method: {sdft: {}}
"""


def described(config: Any) -> dict[str, Any]:
    """What the fields of a configuration are: what they take, their defaults and their ranges."""
    assert isinstance(config, type)
    assert issubclass(config, BaseModel)
    fields = {name: (describe([Expected(field.annotation, tuple(field.metadata))]), field.is_required(), repr(field.default))
              for name, field in config.model_fields.items()}  # fmt: skip
    return {"fields": fields, "ranges": declared_ranges(config), "schema": _without_words(config.model_json_schema())}


def _without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_words(value) for key, value in schema.items() if key != "description"}
    return [_without_words(item) for item in schema] if isinstance(schema, list) else schema


def test_all_that_a_file_may_name_is_known_as_the_code_has_it() -> None:
    """Oracle: the imported classes themselves, of every method, way to choose parameters, GAN, recipe, and ADM's flags."""
    words = vocabulary()
    assert list(words.metrics) == list(METRICS)
    pairs: list[tuple[Any, Any]] = [(words.adm, AdmConfig)]
    for known, imported in (
        (words.methods, {name: entry.config for name, entry in METHODS.items()}),
        (words.params, {name: entry[0] for name, entry in PARAMS.items()}),
        (words.gans, GANS),
        (words.recipes, RECIPES),
    ):
        assert list(known) == list(imported)
        pairs += [(known[name], imported[name]) for name in imported]
    for found, real in pairs:
        assert found is not real
        assert described(found) == described(real)


@pytest.mark.parametrize("command", ["run", "check", "launch"])
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("train: {learning_rate: 1e-4}", "train.learning_rate"),
        ("train: {params: {lora: {r: 8}}}", "train.params.lora.r"),
        ("train: {lr: {loguniform: [1e-5, 1e-3]}}", "`lr: {log: [1e-05, 0.001]}`"),
        ("evaluate: {metrics: [fid]}", "evaluate.metrics"),
    ],
)
def test_an_unknown_key_is_refused_before_anything_slow_is_imported(command: str, text: str, word: str, tmp_path: Path) -> None:
    """Oracle: the modules of the process as it ends."""
    path = tmp_path / "quick.yaml"
    path.write_text(FILE + text)
    code = (
        f"import atexit, sys\natexit.register(lambda: print('heavy:', *[name for name in {HEAVY} if name in sys.modules]))\n"
        "from fewshot_ray.cli import main; main()"
    )
    where = ["--address", "http://127.0.0.1:9"] if command == "launch" else []
    arguments = [sys.executable, "-c", code, command, str(path), *where]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "heavy:\n"), done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_all_errors_of_a_file_are_said_at_once() -> None:
    """Oracle: messages' fields in the file's order, of YAML, sections, methods, parameters and metrics alike."""
    text = """\
name: quick
source: {model: m}
target: {images: ten, shots: 0}
method:
  ant: {noise_steps: ten, noise_stepsize: 0.1}
  sdtf: {}
train:
  lr: {log: [0, 1]}
  steps: .nan
  params: {lora: {r: 8}}
  steps: 300
evaluate: {metrics: [holdout_los], every: 0}
"""
    with pytest.raises(UserError) as refused:
        checked_document(text, "x.yaml")
    assert [line.split(": ")[1] for line in refused.value.lines] == [
        "target.shots",
        "method.ant.noise_steps",
        "method.ant.noise_stepsize",
        "method.sdtf",
        "train.lr",
        "train.steps",
        "train.params.lora.r",
        "train.steps",
        "evaluate.every",
        "evaluate.metrics.0",
    ]


def test_a_valid_file_passes() -> None:
    """Oracle: the shipped files, ranges and `search` among them."""
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        checked_document(path.read_text(), str(path))
    checked_document(FILE + "train: {params: {lora: search}}\nsearch: {trials: 3}", "x.yaml")


@pytest.mark.parametrize(
    ("rest", "field", "right"),
    [
        ("train: {lr: {log: [1e-5, 1e-3]}}", "train.lr", "`search: {trials: 24}`, say, is right"),
        ("train: {params: {lora: search}}", "train.params.lora", "`search: {trials: 24}`, say, is right"),
        ("train: {lr: {choice: [1e-5, 1e-3]}}\nsearch: {sampler: gp}", "train.lr", "`trials: 24` below `search`, say, is right"),
    ],
)
def test_a_range_asks_for_a_number_of_trials(rest: str, field: str, right: str) -> None:
    """By default it would be one, with the preset's values."""
    with pytest.raises(UserError) as refused:
        checked_document(FILE + rest, "x.yaml")
    assert str(refused.value).split(": ", 1)[1] == f"{field}: is to be searched, and nothing says with how many trials; {right}"
    checked_document(FILE + rest.partition("\n")[0] + "\nsearch: {trials: 1}", "x.yaml")


def test_the_example_of_a_new_method_is_known_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: CONTRIBUTING's example: its one file is all that its settings are read from."""
    example = re.search(r"```python\n(.*?class AnchorConfig.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "anchor.py").write_text(example[1])
    (tmp_path / "methods" / "registry.py").write_text((ROOT / "fewshot_ray" / "methods" / "registry.py").read_text())
    monkeypatch.setattr(declared, "ROOT", tmp_path)
    declared.source.cache_clear()
    try:
        config = declared.declared("fewshot_ray.methods.anchor", "AnchorConfig")
    finally:
        declared.source.cache_clear()
    assert list(config.model_fields) == ["lambda_anchor"]
    assert declared_ranges(config)["lambda_anchor"].describe() == "log 0.01 .. 1.0"
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        config(lambda_anchor=-1.0)


def test_what_needs_an_import_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a class whose field is of a type of torch's, one whose default another library computes, and a name that isn't there."""
    (tmp_path / "odd.py").write_text(
        "import torch\nfrom numpy import pi\nfrom pydantic import BaseModel\n\n"
        "class A(BaseModel):\n    x: torch.Tensor\n\nclass B(BaseModel):\n    x: float = pi\n"
    )
    monkeypatch.setattr(declared, "ROOT", tmp_path)
    declared.source.cache_clear()
    try:
        for name in ("A", "B", "C"):
            with pytest.raises(declared.NeedsImportError):
                declared.declared("fewshot_ray.odd", name)
    finally:
        declared.source.cache_clear()
