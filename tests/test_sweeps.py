"""Every file in sweeps/ is valid as it is shipped."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_ray.spec.document import ranges, read_document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document, compose, plain, preset_values, with_values
from fewshot_ray.trial.trial import Trial
from tests.cli.conftest import write_pictures
from tests.tiny_pipelines import WRITERS, write_adm, write_dinov2

CPU = torch.device("cpu")

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_is_valid(path: Path) -> None:
    """Oracle: the checks that `run` makes, at both ends of every range; its name is its file's."""
    document, file = check_document(read_document(path))
    assert file.name == path.stem
    preset = preset_values(document)
    compose(with_values(document, preset))
    compose(with_values(plain(document), {key: value for key, value in preset.items() if not key.startswith("method.")}))


def test_readme_shows_the_file() -> None:
    """Oracle: sweeps/ten-images.yaml without its opening comment, to the letter."""
    root = Path(__file__).parents[1]
    block = (root / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    shipped = (root / "sweeps" / "ten-images.yaml").read_text().splitlines(keepends=True)
    assert block == "".join(line for line in shipped if not line.startswith("# "))


HUB = {
    "ant-ddpm": "pixel",
    "ant-ldm": "ldm-vq",
    "sdft-metfaces": "adm",
    "sdft-aahq": "adm",
    "sadm-dit": "dit",
    "compose": "pixel",
    "ten-images": "pixel",
}


def test_every_file_for_a_real_model_is_tried_below() -> None:
    """Oracle: the files whose source isn't embedded or built."""
    real = {
        path.stem
        for path in FILES
        for source in [read_document(path).tree["source"]]
        if "embedded" not in str(source) and not {"build", "gan"} & source.keys()
    }
    assert real == set(HUB)


def small(tree: dict[str, Any], kind: str, folder: Path) -> dict[str, Any]:
    """The file's methods and parameters on a tiny model of the same architecture and a few pictures, for two steps."""
    if kind == "adm":
        source = {"adm": {**tree["source"]["adm"], **write_adm(folder / "p2.pt")}}
    else:
        WRITERS[kind](folder / "model")
        source = {**tree["source"], "model": str(folder / "model")}
    write_dinov2(folder / "dinov2")
    for place in ("cats", "dogs"):
        write_pictures(folder / "pictures" / place, 4, first=0 if place == "cats" else 10)
    if "generated_images" in source:
        source["generated_images"] = 4
    method = {name: dict(settings) for name, settings in tree["method"].items()}
    if "ant" in method:
        method["ant"] |= {"classifier_steps": 1, "classifier_batch": 2}
    if "sadm" in method:
        method["sadm"] |= {"encoder": "dinov2", "encoder_weights": str(folder / "dinov2"), "warmup_steps": 1}
    return {
        **tree,
        "source": source,
        "target": {**tree["target"], "images": str(folder / "pictures"), "shots": 6, "holdout": 2},
        "method": method,
        "train": {**tree["train"], "steps": 2, "batch_size": 4},
        "evaluate": {"every": 2, "samples": 0, "grid_images": 2, "sampler_steps": 2, "metrics": ["holdout_loss"], "loss_draws": 4},
        "search": {"trials": 1},
        "resources": {},
    }


@pytest.mark.parametrize(("name", "kind"), HUB.items(), ids=HUB)
def test_two_steps_on_a_tiny_model_of_the_same_architecture(name: str, kind: str, tmp_path: Path) -> None:
    """Oracle: finite losses of the preset and of every way to choose what is trained; Psi trains in the second step where it may."""
    document = read_document(Path(__file__).parents[1] / "sweeps" / f"{name}.yaml")
    document = replace(document, tree=small(dict(document.tree), kind, tmp_path))
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
