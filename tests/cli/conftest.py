"""Somebody's own pictures, a small pipeline of theirs and a file, and the command line in this process."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image, ImageDraw

from fewshot_ray.cli import main
from fewshot_ray.spec.document import to_yaml
from tests.cli.plain_diffusers import PlainDiffusers
from tests.tiny_diffusion import tiny_unet


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def fewshot(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`fewshot("check", path)`: the entry point itself, in this process."""

    def fewshot(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fewshot-ray", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return Answer(int(ended.value.code or 0), said.out, said.err)

    return fewshot


@pytest.fixture(scope="session")
def plain_diffusers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlainDiffusers]:
    """See `PlainDiffusers`."""
    running = PlainDiffusers(tmp_path_factory.mktemp("plain_diffusers"))
    yield running
    running.stop()


def painting(seed: int) -> Image.Image:
    """Ellipses on a plain ground, in one of five sizes."""
    width, height = [(64, 48), (48, 64), (60, 40), (33, 50), (80, 80)][seed % 5]
    image = Image.new("RGB", (width, height), (37 * seed % 256, 91 * seed % 256, 200 - 17 * seed % 200))
    draw = ImageDraw.Draw(image)
    for i in range(5):
        x, y = (13 * seed + 11 * i) % (width - 12), (7 * seed + 17 * i) % (height - 12)
        draw.ellipse((x, y, x + 12 + i, y + 9 + i), fill=((50 * i + seed * 29) % 256, (seed * 83) % 256, (i * 71) % 256))
    return image


def write_pictures(folder: Path, count: int = 6, first: int = 0) -> None:
    """PNG, an EXIF-turned JPEG, WebP, RGBA and a palette, in turn."""
    folder.mkdir(parents=True)
    for seed in range(first, first + count):
        image = painting(seed)
        if seed % 5 == 0:
            image.save(folder / f"holiday {seed}.png")
        elif seed % 5 == 1:
            exif = Image.Exif()
            exif[0x0112] = 6
            image.save(folder / f"IMG_{seed}.JPG", "JPEG", exif=exif, quality=95)
        elif seed % 5 == 2:
            image.save(folder / f"{seed}.webp")
        elif seed % 5 == 3:
            image.convert("RGBA").save(folder / f"logo{seed}.png")
        else:
            image.convert("P").save(folder / f"palette{seed}.png")


def write_pipeline(folder: Path, prediction_type: str = "epsilon", **changes: Any) -> UNet2DModel:
    """A tiny pipeline on 3x16x16 images, as diffusers saves it."""
    unet = tiny_unet(**{"sample_size": 16, "in_channels": 3, "out_channels": 3, **changes})
    DDPMPipeline(unet, DDPMScheduler(prediction_type=prediction_type)).save_pretrained(str(folder))
    return unet


@dataclass
class Desk:
    """What a user has in a folder; `tree` is the file's content, changed by a test before `write`."""

    folder: Path
    tree: dict[str, Any]

    @property
    def file(self) -> Path:
        return self.folder / "mine.yaml"

    def write(self) -> Path:
        """The file on disk."""
        self.file.write_text(to_yaml(self.tree))
        return self.file

    def contents(self) -> dict[str, str]:
        """Every file's hash, and every folder."""
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
            for path in sorted(self.folder.rglob("*"))
        }


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A run that nothing is wrong with."""
    write_pictures(tmp_path / "photos")
    write_pipeline(tmp_path / "model")
    tree = {
        "name": "mine",
        "source": {"model": str(tmp_path / "model")},
        "target": {"images": str(tmp_path / "photos"), "holdout": {"crossfit": 2}},
        "method": {"sdft": {}},
        "train": {"steps": 4, "batch_size": 4},
        "evaluate": {"every": 2, "samples": 0, "grid_images": 0, "metrics": ["holdout_loss"], "loss_draws": 8},
        "search": {"trials": 2},
        "storage": str(tmp_path / "sweeps"),
    }
    return Desk(tmp_path, tree)
