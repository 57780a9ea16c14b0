"""The benchmarks that signals are judged on: models trained on ten images in many ways, and images nobody trained on to judge them by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from bench.search.spaces import DIGITS, Tree
from fewshot_ray.data.digits import digits

HELD_OUT = 10
"""Images that a model is judged by, as many as shots."""


@dataclass(frozen=True)
class Benchmark:
    """Configurations, each trained on each split. `tree` makes the run's file of a configuration on a split; files go below a folder."""

    name: str
    tree: Callable[[int, int, Path], Tree]
    configurations: int
    splits: Sequence[int]
    development: Sequence[int]
    """The splits on which anything may be chosen or fitted; the others report."""


def _held_out(part: str, split: int, of_class: int, folder: Path) -> str:
    """Write the first `of_class` images of each class of a part as PNGs; returns their folder."""
    found = digits(part, split)
    labels = found.labels.tolist()
    folder.mkdir(parents=True, exist_ok=True)
    for label in sorted(set(labels)):
        for index in [index for index, one in enumerate(labels) if one == label][:of_class]:
            Image.fromarray(found.images[index, 0].numpy()).save(folder / f"{label}-{index}.png")
    return str(folder)


def _measured(tree: Tree) -> Tree:
    """Losses alone: samples are drawn by the recorder, which keeps them."""
    return {**tree, "evaluate": {**tree["evaluate"], "every": 40, "samples": 0, "metrics": ["holdout_loss"], "keep_samples": False}}


def _digits(configuration: int, split: int, folder: Path) -> Tree:
    tree = _measured(DIGITS.tree(DIGITS.configuration(configuration), split))
    tree["target"]["holdout"] = _held_out("validation", split, 1, folder / "held-out")
    return tree


def _biased(configuration: int, split: int, folder: Path) -> Tree:
    tree = _measured(DIGITS.tree(DIGITS.configuration(configuration), split))
    tree["target"] = {
        "images": f"embedded://digits/biased-shots?seed={split}",
        "holdout": _held_out("biased-validation", split, 2, folder / "held-out"),
        "test": f"embedded://digits/biased-test?seed={split}",
    }
    return tree


def _crossfit(configuration: int, split: int, folder: Path) -> Tree:
    tree = _measured(DIGITS.tree(DIGITS.configuration(configuration), split))
    tree["target"]["holdout"] = {"crossfit": 5}
    return tree


BENCHMARKS: Mapping[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark("digits", _digits, 24, range(8), development=(0, 1, 2)),
        Benchmark("digits-biased", _biased, 20, range(6), development=(0,)),
        Benchmark("digits-crossfit", _crossfit, 12, range(6), development=(0,)),
    )
}


def written(values: Mapping[str, Any]) -> str:
    """A configuration's values in a line."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
