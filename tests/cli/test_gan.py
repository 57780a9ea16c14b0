"""A GAN's sweep through the commands: searched, exported, loaded by diffusers alone, sampled, measured, and trained on from."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from tests.cli.conftest import Command, Desk
from tests.cli.plain_diffusers import PlainDiffusers
from tests.cli.sweeping import finished_sweep
from tests.cli.test_bad_input import one_line
from tests.tiny_gan import tiny_stylegan2

NETWORK = {"resolution": 8, "channels": 1, "latent_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8}
LOAD_ELSEWHERE = """
import sys
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipeline(3, generator=torch.Generator().manual_seed(0), output_type="np").images
assert images.shape == (3, 8, 8, 1), images.shape
assert len(pipeline(2, truncation=0.5).images) == 2
print(type(pipeline).__name__, type(pipeline.components["generator"]).__name__)
"""


def prepared(desk: Desk) -> Desk:
    desk.tree |= {
        "source": {"gan": {"stylegan2": NETWORK}},
        "target": {"images": "embedded://digits/shots", "holdout": {"crossfit": 2}, "test": "embedded://digits/test"},
        "method": {"mixdl": {"lambda_g": {"log": [100.0, 1000.0]}}},
        "train": {"steps": 2, "flip": False},
        "evaluate": {"every": 1, "samples": 6, "final_samples": 8, "paths": 2, "final_paths": 2, "metrics": ["kid", "path_uniformity"]},
        "search": {"trials": 3},
    }
    return desk


def test_from_the_file_to_plain_diffusers_and_on(desk: Desk, fewshot: Command, plain_diffusers: PlainDiffusers, tmp_path: Path) -> None:
    """Oracle: diffusers alone, in a process that can't import this package; the folder's own files; and a second run that starts there."""
    opened = finished_sweep(prepared(desk))
    url = opened.folder.folder.url
    states = {record.id: record.state for record in opened.folder.trials()}
    assert set(states.values()) == {"COMPLETE"}, states
    samples = tmp_path / "sweeps" / "mine" / "trials" / "t0000" / "samples"
    assert {path.name for path in samples.iterdir()} >= {"step_000002.png", "path_000002.png"}
    assert Image.open(samples / "path_000002.png").size == (8 * 66 + 2, 4 * 66 + 2)
    out = tmp_path / "gan"
    assert fewshot("export", url, out).code == 0
    card = (out / "README.md").read_text()
    assert "pipeline(num_images=16)" in card
    assert "path_uniformity" in card
    assert plain_diffusers.run(LOAD_ELSEWHERE, out) == ["GanPipeline", "StyleGan2Generator"]
    assert fewshot("sample", out, tmp_path / "drawn", "--number", "3").code == 0
    assert Image.open(tmp_path / "drawn" / "00000.png").size == (8, 8)
    answer = fewshot("evaluate", url)
    assert answer.code == 0, answer.err
    assert "path_uniformity" in (tmp_path / "sweeps" / "mine" / "test.json").read_text()
    desk.tree |= {"name": "on", "source": {"gan": {"stylegan2": {"weights": str(out)}}}, "method": {"cdc": {}}, "search": {"trials": 1}}
    further = finished_sweep(desk)
    assert [record.state for record in further.folder.trials() if record.kind == "search"] == ["COMPLETE"]


def test_check_describes_a_gan(desk: Desk, fewshot: Command) -> None:
    """Oracle: the plan's lines."""
    answer = fewshot("check", prepared(desk).write())
    assert answer.code == 0, answer.err
    assert "from scratch: StyleGan2Generator, 1 x 8 x 8" in answer.out
    assert "of the discriminator" in answer.out
    assert "method.mixdl.lambda_g" in answer.out


def test_a_diffusion_pipeline_is_no_gan(desk: Desk, fewshot: Command) -> None:
    """Oracle: one line that says what it is."""
    desk = prepared(desk)
    desk.tree["source"] = {"gan": {"stylegan2": {"weights": str(desk.folder / "model")}}}
    answer = fewshot("check", desk.write())
    assert "is a DDPMPipeline, no GAN" in one_line(answer)


def test_check_says_where_given_weights_are(desk: Desk, fewshot: Command) -> None:
    """Oracle: the place, not "from scratch"; and one line for a GAN of another kind."""
    desk = prepared(desk)
    place = desk.folder / "550000.pt"
    gan = tiny_stylegan2(8)
    torch.save({"g_ema": gan.generator.state_dict(), "d": gan.discriminator.state_dict()}, place)
    desk.tree["source"] = {"gan": {"stylegan2": {"weights": str(place)}}}
    answer = fewshot("check", desk.write())
    assert answer.code == 0, answer.err
    assert f"{place}: StyleGan2Generator, 1 x 8 x 8" in answer.out
    assert "from scratch" not in answer.out
    desk.tree["source"] = {"gan": {"fastgan": {"weights": str(place)}}}
    assert f"source.gan.fastgan.weights: {place} is a checkpoint of a StyleGan2; source.gan.stylegan2" in one_line(
        fewshot("check", desk.write())
    )
