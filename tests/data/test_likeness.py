"""The same picture saved again, and pictures that are only much alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fewshot_ray.data.images import ImageSet, read_images
from fewshot_ray.data.likeness import likenesses
from fewshot_ray.data.target import make_folds
from fewshot_ray.errors import UserError

from .conftest import Paint, encode


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def read(folder: Path, files: dict[str, bytes], size: int = 32) -> ImageSet:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return read_images(str(folder), size=size, channels=3)


@pytest.mark.parametrize("size", [8, 32])
def test_shots_saved_again_are_not_held_out(tmp_path: Path, paint: Paint, size: int) -> None:
    """Oracle: which of them were saved again: as JPEG down to quality 20, smaller, larger."""
    shots = read(tmp_path / "shots", {f"{seed}.png": encode(paint(seed)) for seed in range(8)}, size)
    again = {f"{seed}.jpg": jpeg(paint(seed), quality) for seed, quality in zip(range(6), (95, 75, 50, 40, 30, 20), strict=True)}
    again |= {"6.png": encode(paint(6).resize((48, 36))), "7.webp": encode(paint(7).resize((128, 96)), "WEBP")}
    others = {f"{seed}.png": encode(paint(seed)) for seed in range(20, 25)}
    holdout = read(tmp_path / "holdout", again | others, size)
    (fold,) = make_folds(shots, holdout, 0)
    assert set(fold.holdout.names) == set(others)
    assert {holdout.names[one.index]: shots.names[one.other] for one in likenesses(holdout, shots) if one.same} == {
        name: f"{name[0]}.png" for name in again
    }


def test_a_holdout_of_saved_again_shots_alone_is_refused(tmp_path: Path, paint: Paint) -> None:
    shots = read(tmp_path / "shots", {f"{seed}.png": encode(paint(seed)) for seed in range(3)})
    holdout = read(tmp_path / "holdout", {f"{seed}.jpg": jpeg(paint(seed), 80) for seed in range(3)})
    with pytest.raises(UserError, match="all of its 3 images are among the 3 shots"):
        make_folds(shots, holdout, 0)


def face(mouth: int) -> Image.Image:
    """An emoji's like: the same but for its mouth."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, 120, 120), "gold")
    draw.ellipse((36, 44, 48, 56), "black")
    draw.ellipse((80, 44, 92, 56), "black")
    draw.rectangle((44, 84, 84, 84 + mouth), "black")
    return image


def test_what_is_only_alike_stays(tmp_path: Path) -> None:
    """Oracle: two drawings that differ by a mouth, closer than the hash tells apart: named, and not taken for one."""
    shots = read(tmp_path / "shots", {"smile.png": encode(face(3))}, 64)
    others = read(tmp_path / "others", {"laugh.png": encode(face(8)), "again.jpg": jpeg(face(3), 75)}, 64)
    assert {others.names[one.index]: one.same for one in likenesses(others, shots)} == {"laugh.png": False, "again.jpg": True}
    assert others.without(shots).names == ("laugh.png",)


def test_sets_without_hashes_are_compared_by_content(paint: Paint) -> None:
    import torch

    pixels = torch.from_numpy(np.stack([np.asarray(paint(1, 8, 8)).transpose(2, 0, 1)] * 2))
    one, two = ImageSet(pixels[:1], ("a",), ("a",)), ImageSet(pixels, ("b", "c"), ("b", "a"))
    assert [(found.index, found.same) for found in likenesses(two, one)] == [(1, True)]
