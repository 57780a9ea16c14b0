"""The main job on somebody's own photographs and a pipeline of another size, through the command line and its own Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fewshot_ray.data.images import read_images
from tests.cli.conftest import Desk, write_pictures, write_pipeline
from tests.cli.plain_diffusers import PlainDiffusers
from tests.cli.test_results import LOAD_ELSEWHERE

ENTRY = "from fewshot_ray.cli import main; main()"


def fewshot(*arguments: object) -> str:
    """Standard output of a command that ends well."""
    command = [sys.executable, "-c", ENTRY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.ray
def test_from_photographs_to_a_pipeline(desk: Desk, plain_diffusers: PlainDiffusers) -> None:
    """PNG, JPEG (turned), WebP, RGBA and palette in, cross-fitted v-prediction training, adaptors out; diffusers alone loads them.

    The sweep's path has brackets, which rich would take for styles: it is printed as it is.
    """
    write_pipeline(desk.folder / "v", "v_prediction")
    write_pictures(desk.folder / "test", 4, first=30)
    desk.tree["source"] = {"model": str(desk.folder / "v"), "images": "generated", "generated_images": 8}
    desk.tree["target"]["test"] = str(desk.folder / "test")
    desk.tree["method"] = {
        "ant": {"noise_steps": 1, "noise_norm": "moments", "guidance": {"float": [0.1, 1.0]}, "classifier_steps": 2, "classifier_batch": 4},
        "sdft": {"lambda_distill": {"log": [0.01, 1.0]}},
    }
    desk.tree["train"] |= {"lr": {"log": [1e-3, 1e-2]}, "params": {"adaptor": {"pool": 2, "width": 4}}}
    desk.tree["evaluate"] |= {"grid_images": 4, "sampler_steps": 2}
    desk.tree["search"] = {"trials": 3, "objectives": {"holdout_loss": "min"}}
    desk.tree["storage"] = str(desk.folder / "[bold]" / "[/wip]")
    before = desk.contents()
    shown = fewshot("run", desk.write())
    sweep, out = Path(desk.tree["storage"]) / "mine", desk.folder / "out"
    assert shown.startswith(f"sweep {sweep}\n")
    assert shown.endswith(f"export {sweep} OUT\n")
    assert all(trial in shown for trial in ("t0000", "t0001", "t0002", "refit-t000"))
    assert (sweep / "leaderboard.csv").exists()
    assert (sweep / "report.html").exists()
    assert fewshot("export", sweep, out).startswith("refit-t000")
    assert plain_diffusers.run(LOAD_ELSEWHERE, out, "trust") == ["AdaptorUNet2DModel"]
    _card(out, desk.folder / "photos")
    assert before.items() <= desk.contents().items()


def _card(out: Path, photos: Path) -> None:
    card = (out / "README.md").read_text()
    assert "fine-tuned on 6 images with ant + sdft" in card
    assert "trust_remote_code=True" in card
    assert all(content in card for content in read_images(str(photos), size=16, channels=3).hashes)
    with Image.open(out / "samples.png") as grid:
        assert grid.mode == "RGB"
