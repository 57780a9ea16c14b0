"""The benchmarks that signals are judged on: models trained on ten images in many ways, and images nobody trained on to judge them by."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from bench.search.spaces import DIGITS, Tree
from fewshot_ray.data.digits import digits

HELD_OUT = 10
"""Images that a model is judged by, as many as shots."""
EMOJI_RATES = math.log(100) / math.log(200)
"""Learning rates are 1e-5 .. 1e-3 on the emoji, and 1e-4 .. 2e-2 on the digits."""


@dataclass(frozen=True)
class Benchmark:
    """Configurations, each trained on each split."""

    name: str
    tree: Callable[[int, int, Path, Path], Tree]
    """The run's file of a configuration on a split; what it writes for it goes below the first folder, and the emoji are in the second."""
    configurations: int
    splits: Sequence[int]
    development: Sequence[int]
    """The splits on which anything may be chosen or fitted; the others report."""
    extractor: str = "digits"


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


def _digits(configuration: int, split: int, folder: Path, emoji: Path) -> Tree:
    tree = _measured(DIGITS.tree(DIGITS.configuration(configuration), split))
    tree["target"]["holdout"] = _held_out("validation", split, 1, folder / "held-out")
    return tree


def _biased(configuration: int, split: int, folder: Path, emoji: Path) -> Tree:
    tree = _measured(DIGITS.tree(DIGITS.configuration(configuration), split))
    tree["target"] = {
        "images": f"embedded://digits/biased-shots?seed={split}",
        "holdout": _held_out("biased-validation", split, 2, folder / "held-out"),
        "test": f"embedded://digits/biased-test?seed={split}",
    }
    return tree


def _crossfit(configuration: int, split: int, folder: Path, emoji: Path) -> Tree:
    tree = _measured(DIGITS.tree(DIGITS.configuration(configuration), split))
    tree["target"]["holdout"] = {"crossfit": 5}
    return tree


def _emoji(configuration: int, split: int, folder: Path, emoji: Path) -> Tree:
    """Food from the source of all other emoji but animals, at 32x32; the held-out images are the first of the validation part."""
    values = {**DIGITS.configuration(configuration)}
    values["lr"] = float(f"{1e-5 * (values['lr'] / 1e-4) ** EMOJI_RATES:.4g}")
    tree = _measured(DIGITS.tree(values, split))
    held_out = folder / "held-out"
    held_out.mkdir(parents=True, exist_ok=True)
    for path in sorted((emoji / f"validation-{split}").iterdir())[:HELD_OUT]:
        shutil.copy(path, held_out)
    tree["source"] = {"model": str(emoji / "ddpm"), "images": str(emoji / "source")}
    tree["target"] = {"images": str(emoji / f"shots-{split}"), "holdout": str(held_out), "test": str(emoji / f"test-{split}")}
    tree["train"] |= {"steps": 160, "batch_size": 10, "flip": True}
    if values["method"] == "sadm":  # its encoders read digits, or need a download
        eta = values["eta"]
        tree["method"] = {"ddpm_pa": {"lambda_image": eta, "lambda_high_frequency": eta, "lambda_high_frequency_mse": eta / 10}}
    return tree


BENCHMARKS: Mapping[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark("digits", _digits, 24, range(8), development=(0, 1, 2)),
        Benchmark("digits-biased", _biased, 20, range(6), development=(0,)),
        Benchmark("digits-crossfit", _crossfit, 12, range(6), development=(0,)),
        Benchmark("emoji", _emoji, 16, range(5), development=(0, 1, 2, 3, 4), extractor="efficientnet"),
    )
}
