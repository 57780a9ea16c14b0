"""Decoding, resizing and the two value ranges, against numbers worked out by hand or in NumPy."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewshot_ray.data.images import UPRIGHT, UnreadableImageError, content_hash, decode, fit, from_model_range, read_images, to_model_range
from fewshot_ray.data.places import Picture
from fewshot_ray.errors import UserError

from .conftest import Paint, encode


def decoded(content: bytes) -> Image.Image:
    return decode(Picture("x", content))


def pixel(content: bytes) -> tuple[int, ...]:
    value = decoded(content).getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_formats_keep_every_pixel_and_one_content_hash(paint: Paint, kind: str) -> None:
    """Oracle: the pixels that were encoded."""
    image = paint(1)
    read = decoded(encode(image, kind))
    assert np.array_equal(np.asarray(read), np.asarray(image))
    assert content_hash(read) == content_hash(image)


def test_jpeg_is_read_and_close(paint: Paint) -> None:
    """Oracle: the pixels that were encoded, to within JPEG's loss."""
    image = paint(1)
    difference = np.asarray(decoded(encode(image, "JPEG")), float) - np.asarray(image, float)
    assert np.abs(difference).mean() < 4


def test_every_mode_becomes_rgb_on_white() -> None:
    """Oracle: alpha compositing by hand, 255 (1 - a) + a v."""
    assert pixel(encode(Image.new("L", (4, 4), 77))) == (77, 77, 77)
    assert pixel(encode(Image.new("1", (4, 4), 1))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (4, 4), (10, 20, 30, 0)))) == (255, 255, 255)
    assert pixel(encode(Image.new("RGBA", (4, 4), (0, 100, 200, 51)))) == (204, 224, 244)
    assert pixel(encode(Image.new("LA", (4, 4), (0, 51)))) == (204, 204, 204)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    assert pixel(encode(palette)) == (9, 8, 7)
    palette.info["transparency"] = 1
    assert pixel(encode(palette)) == (255, 255, 255)
    sixteen_bits = Image.fromarray(np.full((4, 4), 128 * 257, np.uint16))
    assert pixel(encode(sixteen_bits)) == (128, 128, 128)
    assert pixel(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")) == (255, 255, 255)


@pytest.mark.parametrize("orientation", [1, *UPRIGHT])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    """Oracle: EXIF 2.32's definition of where row 0 and column 0 of the stored picture belong, as NumPy flips."""
    stored = np.zeros((16, 32), np.uint8)
    stored[:8, :8] = 255
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored.T[:, ::-1],
        7: stored[::-1, ::-1].T,
        8: stored.T[::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = np.asarray(decoded(encode(Image.fromarray(stored).convert("RGB"), kind, exif)))[..., 0]
    assert read.shape == upright.shape
    assert np.array_equal(read > 127, upright > 127)


def test_damaged_files_are_refused_and_never_crash(paint: Paint) -> None:
    """Truncation at any place and flipped bytes end as a picture or as UnreadableImageError, nothing else."""
    generator = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP"):
        whole = encode(paint(3), kind)
        for share in (0, 0.1, 0.5, 0.9):
            with pytest.raises(UnreadableImageError):
                decoded(whole[: int(len(whole) * share)])
        for _ in range(100):
            damaged = bytearray(whole)
            for place in generator.integers(0, len(whole), 3):
                damaged[place] = int(generator.integers(0, 256))
            with contextlib.suppress(UnreadableImageError):
                decoded(bytes(damaged))


def test_text_another_format_and_bombs_are_refused(paint: Paint, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"these are words", encode(paint(1), "GIF"), encode(paint(1), "BMP")):
        with pytest.raises(UnreadableImageError, match="not a PNG, JPEG or WebP image"):
            decoded(content)
    for limit in (1000, 2000):  # 64 x 48 = 3072 pixels: above twice the limit is an error to Pillow, above it a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UnreadableImageError, match=r"64 x 48 pixels, more than .*; a smaller copy is right"):
            decoded(encode(paint(1)))


def test_a_picture_of_14000_pixels_is_called_that() -> None:
    """Oracle: its header; what to do stands beside it."""
    from .profiles import chunk

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 14_000, 14_000, 8, 2, 0, 0, 0))
    with pytest.raises(UnreadableImageError, match=r"^14000 x 14000 pixels, more than 89\.5 million; a smaller copy is right"):
        decoded(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_fit_leaves_the_right_size_alone_and_crops_the_centre() -> None:
    """Oracle: a picture of three vertical bands, of which a square from the middle sees the middle one only."""
    bands = np.zeros((30, 90, 3), np.uint8)
    bands[:, 30:60] = 200
    image = Image.fromarray(bands)
    assert np.array_equal(np.asarray(fit(image, (30, 90))), bands)
    assert (np.asarray(fit(image, 30)) == 200).all()
    assert fit(image, (20, 10)).size == (10, 20)


def test_shrinking_is_antialiased() -> None:
    """Oracle: a one-pixel checkerboard has the mean 127.5 everywhere; taking every n-th pixel would give 0 or 255."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = np.asarray(fit(Image.fromarray(board).convert("RGB"), 8), float)
    assert np.abs(small - 127.5).max() < 4


def test_model_range_goes_there_and_back() -> None:
    """Oracle: x / 127.5 - 1 at its ends, and the identity over all 256 values."""
    values = torch.arange(256, dtype=torch.uint8)
    scaled = to_model_range(values)
    assert scaled.dtype == torch.float32
    assert scaled[0] == -1
    assert scaled[255] == 1
    assert torch.equal(from_model_range(scaled), values)
    assert from_model_range(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_becomes_one_tensor(tmp_path: Path, paint: Paint, channels: int) -> None:
    (tmp_path / "a.png").write_bytes(encode(paint(1)))
    (tmp_path / "b.jpg").write_bytes(encode(paint(2, 33, 90).convert("L"), "JPEG"))
    read = read_images(str(tmp_path), size=(16, 24), channels=channels)
    assert read.images.shape == (2, channels, 16, 24)
    assert read.images.dtype == torch.uint8
    assert len(read) == 2
    assert read.names == ("a.png", "b.jpg")


def test_every_unreadable_file_is_counted_and_three_are_named(tmp_path: Path, paint: Paint) -> None:
    (tmp_path / "good.png").write_bytes(encode(paint(1)))
    whole = encode(paint(2), "JPEG")
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.png").write_text("not a picture")
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "4.heic").write_bytes(b"heic")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError) as caught:
        read_images(str(tmp_path), size=8, channels=3)
    line = str(caught.value)
    assert "4 of 5 files cannot be read: 1.jpg (image file is truncated" in line
    assert "2.png (not a PNG, JPEG or WebP image), 3.png (" in line
    assert "and 1 more" in line
    assert "4.heic" not in line
    assert "\n" not in line
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_a_model_of_four_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 channels"):
        read_images(str(tmp_path), size=8, channels=4)


def test_select_without_and_distinct(tmp_path: Path, paint: Paint) -> None:
    for name, seed in {"a.png": 1, "b.png": 2, "c.png": 1}.items():
        (tmp_path / name).write_bytes(encode(paint(seed)))
    images = read_images(str(tmp_path), size=8, channels=3)
    assert images.distinct().names == ("a.png", "b.png")
    assert images.without(images.select([0])).names == ("b.png",)
    assert len(images.without(images)) == 0
    assert images.without(images).images.shape == (0, 3, 8, 8)


def test_importing_does_not_load_pyarrow() -> None:
    code = "import sys, fewshot_ray.data.images; sys.exit('pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
