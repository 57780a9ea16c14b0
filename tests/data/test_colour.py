"""Colour profiles, PNG's colour chunks and bit depths, against conversions in NumPy float64 from the primaries and curves themselves."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from fewshot_ray.data.images import UnreadableImageError, content_hash, decoded
from fewshot_ray.data.inspection import inspect_images
from fewshot_ray.data.places import Picture

from .conftest import Paint, encode
from .profiles import ADOBE_XY, P3_XY, SRGB_CURVE, SRGB_XY, chunk, cmyk_profile, grey_profile, png, rgb_profile, rgb_to_xyz

Array = NDArray[np.float64]
BT_2020_XY = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))


def from_srgb_curve(value: Array) -> Array:
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def shown(values: Array, primaries: tuple[tuple[float, float], ...], linear: Callable[[Array], Array]) -> Array:
    """0 .. 1 with white D65 -> sRGB 0 .. 255, not rounded."""
    light = linear(values) @ rgb_to_xyz(primaries).T @ np.linalg.inv(rgb_to_xyz(SRGB_XY)).T
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def saved(image: Image.Image, kind: str, profile: bytes) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, icc_profile=profile, **({"lossless": True} if kind == "WEBP" else {}))
    return file.getvalue()


def pixels(content: bytes) -> NDArray[np.int64]:
    return np.asarray(decoded(Picture("x", content)).image, np.int64)


def off(content: bytes, expected: Array) -> float:
    """Largest difference, of 255."""
    return float(np.abs(pixels(content) - expected).max())


PROFILES = {
    "Display P3": (P3_XY, SRGB_CURVE, from_srgb_curve),
    "Adobe RGB": (ADOBE_XY, 563 / 256, lambda value: value ** (563 / 256)),
    "linear sRGB": (SRGB_XY, 1.0, lambda value: value),
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_profiles_become_srgb(name: str, kind: str, paint: Paint) -> None:
    """Oracle: NumPy float64, by the primaries and the curve that the profile was built from."""
    primaries, curve, linear = PROFILES[name]
    image = paint(1)
    expected = shown(np.asarray(image) / 255, primaries, linear)
    assert np.abs(np.asarray(image) - expected).mean() > 2  # what reading it as sRGB is off by
    assert off(saved(image, kind, rgb_profile(primaries, curve)), expected) <= 1.5


def test_a_jpegs_profile_too(paint: Paint) -> None:
    """Oracle: the same file's own pixels, converted in NumPy."""
    plain = encode(paint(2), "JPEG")
    with Image.open(io.BytesIO(plain)) as image:
        stored = np.asarray(image) / 255
    profile = rgb_profile(P3_XY, SRGB_CURVE)
    content = plain[:2] + b"\xff\xe2" + struct.pack(">H", len(profile) + 16) + b"ICC_PROFILE\0\1\1" + profile + plain[2:]
    assert off(content, shown(stored, P3_XY, from_srgb_curve)) <= 1.5


@pytest.mark.parametrize("profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), rgb_profile(SRGB_XY, SRGB_CURVE)])
def test_srgb_by_name_is_left_bit_for_bit(profile: bytes, paint: Paint) -> None:
    """Oracle: the picture without its profile, by pixel and content hash; little CMS's own sRGB and the standard's."""
    image = paint(3)
    read = decoded(Picture("x", saved(image, "PNG", profile)))
    assert content_hash(read.image) == content_hash(image)
    assert not read.note


def test_grey_profiles() -> None:
    """Oracle: v ** 1.8 in linear light, sRGB's curve by hand; with and without alpha."""
    values = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    expected = shown((values / 255)[..., None].repeat(3, axis=-1), SRGB_XY, lambda value: value**1.8)
    image = Image.fromarray(values)
    assert off(saved(image, "PNG", grey_profile(1.8)), expected) <= 1.5
    image.putalpha(255)
    assert off(saved(image, "PNG", grey_profile(1.8)), expected) <= 1.5


def test_inks_by_their_profile() -> None:
    """Oracle: CIE 15's Lab -> XYZ (D50), Bradford to D65, sRGB; at the inks' full overprints, where nothing is interpolated."""
    lab = np.zeros((2, 2, 2, 2, 3))
    lab[..., 0] = 20
    for key, colour in {
        (0, 0, 0, 0): (95, 0, 2),
        (1, 0, 0, 0): (60, -20, -25),
        (0, 1, 0, 0): (52, 40, 0),
        (0, 0, 1, 0): (80, 0, 40),
    }.items():
        lab[key] = colour
    content = io.BytesIO()
    inks = np.zeros((8, 32, 4), np.uint8)
    for index in range(3):
        inks[:, 8 * (index + 1) : 8 * (index + 2), index] = 255
    Image.fromarray(inks, "CMYK").save(content, "JPEG", quality=100, subsampling=0, icc_profile=cmyk_profile(lab))
    found = pixels(content.getvalue())
    for column, key in enumerate([(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0)]):
        lightness, a, b = lab[key]
        y = (lightness + 16) / 116
        f = np.array([y + a / 500, y, y - b / 200])
        xyz = np.array([0.9642, 1, 0.8249]) * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
        bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
        d50, d65 = bradford @ [0.9642, 1, 0.8249], bradford @ rgb_to_xyz(SRGB_XY).sum(axis=1)
        light = np.linalg.inv(rgb_to_xyz(SRGB_XY)) @ np.linalg.inv(bradford) @ ((bradford @ xyz) * d65 / d50)
        expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)
        if column == 0:
            expected = np.full(3, 255)  # bare paper is white, whatever its tint
        assert np.abs(found[4, 8 * column + 4] - expected).max() <= 2, key


def test_transparency_is_laid_on_white_after_the_conversion() -> None:
    """Oracle: NumPy; the alpha of a P3 picture is no colour."""
    image = Image.new("RGBA", (4, 4), (200, 40, 90, 51))
    colour = shown(np.array([200, 40, 90]) / 255, P3_XY, from_srgb_curve)
    assert off(saved(image, "PNG", rgb_profile(P3_XY, SRGB_CURVE)), np.broadcast_to(0.2 * colour + 0.8 * 255, (4, 4, 3))) <= 1.5


def test_palettes_have_their_profile_and_transparency() -> None:
    """Oracle: NumPy; the palette's colours are P3's, one of them is clear."""
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8)).convert("L")
    image.putpalette([200, 40, 90, 10, 220, 30, 0, 0, 0])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=2, icc_profile=rgb_profile(P3_XY, SRGB_CURVE))
    expected = shown(np.array([[200, 40, 90], [10, 220, 30]]) / 255, P3_XY, from_srgb_curve)
    found = pixels(file.getvalue())
    assert np.abs(found[0] - expected).max() <= 1.5
    assert (found[1] == 255).all()


RAMP = np.linspace(0, 65535, 3 * 16 * 24).reshape(16, 24, 3).round().astype(np.int64)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_are_rounded(channels: int) -> None:
    """Oracle: v / 257 to the nearest, alpha by hand; Pillow's own reading is off by up to 1."""
    numbers = RAMP[..., [0, 1, 2, 0][:channels]] if channels > 2 else RAMP[..., :channels]
    numbers = np.array(numbers)
    alpha = 1.0
    if channels in (2, 4):
        numbers[..., -1] = 13107  # a fifth
        alpha = 0.2
    colours = np.broadcast_to(numbers[..., : 1 if channels < 3 else 3], (16, 24, 3))
    expected = alpha * np.round(colours / 257) + (1 - alpha) * 255
    found = pixels(png(numbers, 16))
    assert np.abs(found - expected).max() <= (0 if alpha == 1 else 1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_transparent_colour_at_every_depth(depth: int, channels: int) -> None:
    """Oracle: tRNS by hand: the colour itself is white, the one beside it is not."""
    if channels == 3 and depth < 8:
        return
    most = 2**depth - 1
    numbers = np.array([[[0] * channels, [most] * channels]])
    for key, expected in ((0, [255, 255]), (most, [0, 255])):
        found = pixels(png(numbers, depth, chunk(b"tRNS", struct.pack(f">{channels}H", *[key] * channels))))
        assert found[0, :, 0].tolist() == expected, (depth, key)


def chromaticities(primaries: tuple[tuple[float, float], ...]) -> bytes:
    flat = [0.3127, 0.3290, *(value for corner in primaries for value in corner)]
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in flat)))


def gamma(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)))


CODED_P3 = chunk(b"cICP", bytes([12, 13, 0, 1]))
CHUNKS = {
    "gamma 1": (gamma(1), SRGB_XY, lambda value: value),
    "gamma 1.8": (gamma(1 / 1.8), SRGB_XY, lambda value: value**1.8),
    "Adobe by chunks": (gamma(256 / 563) + chromaticities(ADOBE_XY), ADOBE_XY, from_srgb_curve),
    "P3 primaries": (gamma(1 / 1.8) + chromaticities(P3_XY), P3_XY, lambda value: value**1.8),
    "cICP P3": (CODED_P3, P3_XY, from_srgb_curve),
    "cICP before all": (CODED_P3 + chunk(b"sRGB", b"\0") + gamma(1), P3_XY, from_srgb_curve),
    "cICP BT.2020, linear": (chunk(b"cICP", bytes([9, 8, 0, 1])), BT_2020_XY, lambda value: value),
    "sRGB before gAMA": (chunk(b"sRGB", b"\0") + gamma(1), SRGB_XY, from_srgb_curve),
    "the usual gamma": (gamma(0.45455) + chromaticities(SRGB_XY), SRGB_XY, from_srgb_curve),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("depth", [8, 16])
def test_png_chunks(name: str, depth: int) -> None:
    """Oracle: NumPy float64. Adobe's gamma is within libpng's margin of sRGB's and is taken for it."""
    chunks, primaries, linear = CHUNKS[name]
    numbers = RAMP if depth == 16 else RAMP >> 8
    expected = shown(numbers / (2**depth - 1), primaries, linear)
    assert off(png(numbers, depth, chunks), expected) <= 0.51


def test_a_camera_says_adobe_rgb_without_a_profile(paint: Paint) -> None:
    """Oracle: the same picture with the profile (DCF 2.0: interoperability index R03)."""
    image, exif = paint(4), Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    file, tagged = io.BytesIO(), io.BytesIO()
    image.save(file, "WEBP", lossless=True, exif=exif)
    image.save(tagged, "WEBP", lossless=True, icc_profile=rgb_profile(ADOBE_XY, 563 / 256))
    assert np.abs(pixels(file.getvalue()) - pixels(tagged.getvalue())).max() <= 1
    assert np.abs(pixels(file.getvalue()) - np.asarray(image, np.int64)).mean() > 2


def test_what_cannot_be_read_is_said_by_name(tmp_path: Path, paint: Paint) -> None:
    """Oracle: the rule for messages: one line that names the file."""
    (tmp_path / "broken.png").write_bytes(saved(paint(5), "PNG", b"no profile"))
    (tmp_path / "lab.png").write_bytes(saved(paint(6), "PNG", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()))
    inks = Image.fromarray(np.asarray(paint(7).convert("CMYK")), "CMYK")
    (tmp_path / "print.jpg").write_bytes(encode(inks, "JPEG"))
    (tmp_path / "zero.png").write_bytes(png(RAMP, 16, gamma(0)))
    found = {finding.name: finding for finding in inspect_images(str(tmp_path), 8) if finding.kind == "colour"}
    assert found.keys() == {"broken.png", "lab.png", "print.jpg", "zero.png"}
    assert found["broken.png"].message == "broken.png: a damaged profile; its values are treated as sRGB"
    assert "Lab" in found["lab.png"].message
    assert "without a colour profile" in found["print.jpg"].message
    for code in ([9, 16, 0, 1], [9, 18, 0, 1], [200, 13, 0, 1]):
        with pytest.raises(UnreadableImageError, match=r"HDR|cICP 200"):
            pixels(png(RAMP, 16, chunk(b"cICP", bytes(code))))
