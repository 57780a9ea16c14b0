"""What is reported about a data set, by name, and that nothing is changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.data.inspection import inspect_images
from fewshot_ray.errors import UserError

from .conftest import Paint, encode


def found(place: Path, size: int = 32) -> list[tuple[str, str]]:
    return [(finding.name, finding.kind) for finding in inspect_images(str(place), size)]


def test_good_pictures_are_left_in_peace(tmp_path: Path, paint: Paint) -> None:
    for seed in range(20):
        (tmp_path / f"{seed}.png").write_bytes(encode(paint(seed)))
    assert found(tmp_path) == []


def test_everything_is_reported_by_name_and_nothing_is_changed(tmp_path: Path, paint: Paint) -> None:
    """Oracle: a folder with one of each; the re-encoded, shrunk copy is what only a perceptual hash finds."""
    contents = {
        "1.png": encode(paint(1)),
        "2.webp": encode(paint(1), "WEBP"),
        "3.jpg": encode(paint(1).resize((48, 36)), "JPEG"),
        "4.png": encode(paint(4, 31, 40)),
        "5.png": encode(paint(5, 200, 90)),
        "6.png": b"words",
        "7.gif": encode(paint(7), "GIF"),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert found(tmp_path) == [
        ("4.png", "tiny"),
        ("5.png", "aspect"),
        ("6.png", "unreadable"),
        ("7.gif", "unreadable"),
        ("2.webp", "duplicate"),
        ("3.jpg", "duplicate"),
    ]
    messages = {finding.name: finding.message for finding in inspect_images(str(tmp_path), 32)}
    assert messages["2.webp"] == "2.webp: is the same picture as 1.png; it counts once"
    assert "looks the same as 1.png" in messages["3.jpg"]
    assert all("\n" not in message and message.startswith(name) for name, message in messages.items())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == contents


def test_small_pictures_of_a_kind_are_no_duplicates() -> None:
    assert inspect_images("embedded://digits/target", 8) == []


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        inspect_images(str(tmp_path), 8)
