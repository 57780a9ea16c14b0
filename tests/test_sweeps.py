"""Every file in sweeps/ is valid as it is shipped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fewshot_ray.search.stopping import Stopping
from fewshot_ray.spec.document import ranges, read_document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document, compose, plain, preset_values, with_values
from fewshot_ray.trial.trial import Trial
from tests.small_sweeps import FILES, HUB, small

CPU = torch.device("cpu")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_valid(path: Path) -> None:
    """Oracle: the checks that `run` makes, at both ends of every range; its name is its file's; the stopping warns of nothing."""
    document, file = check_document(read_document(path))
    assert file.name == path.stem
    assert Stopping.of(document, file).warnings == []
    preset = preset_values(document)
    compose(with_values(document, preset))
    compose(with_values(plain(document), {key: value for key, value in preset.items() if not key.startswith("method.")}))


def test_readme_shows_the_file() -> None:
    """Oracle: sweeps/ten-images.yaml without its opening comment, to the letter."""
    root = Path(__file__).parents[1]
    block = (root / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    shipped = (root / "sweeps" / "ten-images.yaml").read_text().splitlines(keepends=True)
    assert block == "".join(line for line in shipped if not line.startswith("# "))


def test_every_file_for_a_real_model_is_tried_below() -> None:
    """Oracle: the files whose source isn't embedded or built."""
    real = {
        path.stem
        for path in FILES
        for source in [read_document(path).tree["source"]]
        if "embedded" not in str(source) and not {"build", "gan"} & source.keys()
    }
    assert real == set(HUB)


@pytest.mark.parametrize("name", HUB)
def test_two_steps_on_a_tiny_model_of_the_same_architecture(name: str, tmp_path: Path) -> None:
    """Oracle: finite losses of the preset and of every way to choose what is trained; Psi trains in the second step where it may."""
    document = read_document(Path(__file__).parents[1] / "sweeps" / f"{name}.yaml")
    document = replace(document, tree=small(document.tree, tmp_path, steps=2))
    document, _ = check_document(document)
    preset = preset_values(document)
    params = ranges(document.tree).get("train.params")
    for choice in params.endpoints() if params else [None]:
        values = {**preset, **({} if choice is None else {"train.params": choice})}
        trial = Trial(compose(with_values(document, values)), Folder(tmp_path / f"trial-{choice}"), Folder(tmp_path / "cache"), device=CPU)
        (evaluation,) = trial.evaluations()
        assert math.isfinite(evaluation.train_loss)
        assert math.isfinite(evaluation.metrics["holdout_loss"])
        assert 0 < evaluation.trained_share <= 1
        sadm = document.tree["method"].get("sadm")
        if sadm is not None:
            psi = trial.trainings[0].method.optimizers()["psi"]
            assert bool(psi.state) == (sadm.get("psi_steps", 1) > 0)
