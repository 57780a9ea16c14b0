"""Converts pictures to sRGB in 8 bits by the encoding their file declares (ICC profile, PNG's colour chunks, EXIF, bit depth).

PNG's order of precedence is that of its specification (third edition, 4.3): cICP, iCCP, sRGB, then gAMA with cHRM.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

Array = NDArray[np.float64]
Chromaticities = tuple[float, float, float, float, float, float, float, float]
"""x and y of white, red, green and blue, as cHRM has them."""

D65 = (0.3127, 0.3290)
BT_709: Chromaticities = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
DISPLAY_P3: Chromaticities = (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
BT_2020: Chromaticities = (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046)
ADOBE_RGB: Chromaticities = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
ADOBE_GAMMA = 563 / 256
"""Adobe RGB (1998), 4.3.4.2."""
SRGB_GAMMA = 1 / 0.45455
"""gAMA of nearly every PNG: programs write it for sRGB."""
GAMMA_MARGIN = 0.05
"""Relative difference below which two gammas count as equal, as in libpng."""
SAME_COLOUR = 1
"""Largest change (of 255) by a profile that counts as sRGB itself: such pictures stay as they are, bit for bit."""
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

CODED = b"cICP"
EXIF_INTEROPERABILITY = 0xA005
INTEROPERABILITY_INDEX = 1
ADOBE_INDEX = "R03"
"""DCF 2.0: a camera's way to say Adobe RGB without a profile."""


class UnknownColourError(Exception):
    """The colour encoding of a picture is unknown; the message says why in a few words."""


@dataclass(frozen=True)
class Encoding:
    """An RGB encoding: primaries and transfer function."""

    primaries: Chromaticities
    linear: Callable[[Array], Array]
    """Transfer function: encoded value 0 .. 1 -> linear light 0 .. 1."""


def srgb_to_linear(value: Array) -> Array:
    """The sRGB transfer function (IEC 61966-2-1): encoded 0 .. 1 -> linear light."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(value: Array) -> Array:
    """The inverse of `srgb_to_linear`, clipped to 0 .. 1."""
    value = value.clip(0, 1)
    return np.where(value <= 0.0031308, value * 12.92, 1.055 * value ** (1 / 2.4) - 0.055)


def power(gamma: float) -> Callable[[Array], Array]:
    """The transfer function of a pure power law."""
    return lambda value: value**gamma


def xyz_matrix(primaries: Chromaticities) -> Array:
    """Linear RGB -> XYZ, `[3, 3]`; white has Y = 1. Raises UnknownColourError where they aren't those of real colours."""
    white, *corners = np.array(primaries, np.float64).reshape(4, 2)
    if (white[1] <= 0) or any(corner[1] <= 0 for corner in corners):
        raise UnknownColourError("chromaticities that are no colours")
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
    try:
        scale = np.linalg.solve(columns, [white[0] / white[1], 1, (1 - white.sum()) / white[1]])
    except np.linalg.LinAlgError as error:
        raise UnknownColourError("chromaticities that are no colours") from error
    return np.asarray(columns * scale, np.float64)


def to_srgb(values: NDArray[np.unsignedinteger[Any]], encoding: Encoding) -> Image.Image:
    """Values `[H, W, 3]` (or `[H, W, 1]`, grey) of 8 or 16 bits in `encoding` -> sRGB.

    Another white point is adapted (Bradford); colours outside sRGB are clipped.
    """
    source, target = xyz_matrix(encoding.primaries), xyz_matrix(BT_709)
    cones = [BRADFORD @ matrix.sum(axis=1) for matrix in (source, target)]
    adapt = np.linalg.inv(BRADFORD) @ np.diag(cones[1] / cones[0]) @ BRADFORD
    matrix = np.linalg.inv(target) @ adapt @ source
    result = np.empty((*values.shape[:2], 3), np.uint8)
    for row, line in enumerate(values):  # row by row: a whole photograph in float64 would take eight times its bytes
        linear = encoding.linear(np.broadcast_to(line, (len(line), 3)) / np.iinfo(values.dtype).max)
        result[row] = (linear_to_srgb(linear @ matrix.T) * 255).round()
    return Image.fromarray(result)


def separated(numbers: NDArray[np.uint16], transparent: int | tuple[int, ...] | None) -> tuple[NDArray[np.uint16], Image.Image | None]:
    """16-bit numbers `[H, W, 1 .. 4]` -> colours `[H, W, 1 or 3]` and alpha, if any: a channel, or from the one `transparent` colour."""
    if numbers.shape[-1] in (2, 4):
        return numbers[..., :-1], rounded(numbers[..., -1:])
    if transparent is None:
        return numbers, None
    return numbers, Image.fromarray(np.where((numbers == np.array(transparent)).all(axis=-1), 0, 255).astype(np.uint8))


def rounded(numbers: NDArray[np.uint16]) -> Image.Image:
    """16-bit numbers `[H, W, 1 or 3]` -> 8 bits, rounded to the nearest."""
    return Image.fromarray(((numbers.astype(np.uint32) + 128) // 257).astype(np.uint8).squeeze(-1 if numbers.shape[-1] == 1 else ()))


def with_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """A picture of mode L, RGB or CMYK as sRGB, by its ICC profile (relative colorimetric intent).

    Raises UnknownColourError where the profile is damaged or for other channels.
    """
    transform, space = _transform(profile, image.mode)
    if space != image.mode:
        image = image.convert(space)
    return image if transform is None else ImageCms.applyTransform(image, transform) or image


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """The transform of pictures of a mode to sRGB (None: they are sRGB already), and the mode it expects."""
    try:
        opened = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(opened.profile.xcolor_space.strip())
        if space is None or (space == "CMYK") != (mode == "CMYK") or (space == "L" and mode != "L"):
            raise UnknownColourError(f"a profile of {opened.profile.xcolor_space.strip()} colours on a picture in {mode}")
        flags = ImageCms.Flags.HIGHRESPRECALC
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(opened, srgb, space, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, flags)
        lattice = _lattice(space)
        moved = None if lattice is None else ImageCms.applyTransform(lattice, transform)
    # Pillow's errors for data that is no profile, or a profile without the needed direction.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        raise UnknownColourError("a damaged profile") from error
    if lattice is not None and moved is not None:
        difference = np.abs(np.asarray(moved, np.int16) - np.asarray(lattice.convert("RGB"), np.int16))
        if difference.max() <= SAME_COLOUR:
            return None, space
    return transform, space


def _lattice(mode: str) -> Image.Image | None:
    """Colours spread over a mode's whole range; None for CMYK."""
    if mode == "CMYK":
        return None
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3))


def png_chunks(content: bytes) -> dict[bytes, bytes]:
    """The chunks before a PNG's image data, by type; for a damaged file those before the damage."""
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[at : at + 8])
        if kind in (b"IDAT", b"IEND") or at + 12 + length > len(content):
            break
        chunks.setdefault(kind, content[at + 8 : at + 8 + length])
        at += 12 + length
    return chunks


def png_encoding(chunks: dict[bytes, bytes]) -> Encoding | None:
    """The encoding that a PNG's chunks other than iCCP declare; None for sRGB. Raises UnknownColourError for one that isn't known."""
    if len(code := chunks.get(CODED, b"")) == 4:
        return _coded(*code)
    if b"iCCP" in chunks or b"sRGB" in chunks or len(chunks.get(b"gAMA", b"")) != 4:
        return None
    stored = struct.unpack(">I", chunks[b"gAMA"])[0] / 100_000
    if stored <= 0:
        raise UnknownColourError("gAMA of 0")
    gamma, primaries = 1 / stored, BT_709
    if len(corners := chunks.get(b"cHRM", b"")) == 32:
        given = [value / 100_000 for value in struct.unpack(">8I", corners)]
        primaries = (given[0], given[1], given[2], given[3], given[4], given[5], given[6], given[7])
    same_gamma = abs(gamma / SRGB_GAMMA - 1) < GAMMA_MARGIN
    if same_gamma and max(abs(a - b) for a, b in zip(primaries, BT_709, strict=True)) < 0.01:
        return None
    return Encoding(primaries, srgb_to_linear if same_gamma else power(gamma))


def _coded(primaries: int, transfer: int, matrix: int, full_range: int) -> Encoding | None:
    """The encoding of a cICP chunk, by the code points of ITU-T H.273."""
    known_primaries = {1: BT_709, 9: BT_2020, 12: DISPLAY_P3}
    # BT.709's curve (1, 6, 14, 15) is a camera's; for display browsers use sRGB's.
    known_transfer = dict.fromkeys((1, 6, 13, 14, 15), srgb_to_linear) | {4: power(2.2), 5: power(2.8), 8: power(1.0)}
    if transfer in (16, 18):
        raise UnknownColourError(f"HDR ({'PQ' if transfer == 16 else 'HLG'}), which has no unique sRGB rendering")
    if primaries not in known_primaries or transfer not in known_transfer or matrix != 0 or full_range != 1:
        raise UnknownColourError(f"cICP {primaries}, {transfer}, {matrix}, {full_range}")
    if primaries == 1 and known_transfer[transfer] is srgb_to_linear:
        return None
    return Encoding(known_primaries[primaries], known_transfer[transfer])


def exif_encoding(exif: Image.Exif) -> Encoding | None:
    """Adobe RGB where EXIF declares it (a camera without a profile); else None, sRGB."""
    try:
        index = exif.get_ifd(EXIF_INTEROPERABILITY).get(INTEROPERABILITY_INDEX)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error):  # damaged EXIF; the picture is intact
        return None
    text = index.decode("latin-1") if isinstance(index, bytes) else str(index)
    return Encoding(ADOBE_RGB, power(ADOBE_GAMMA)) if text.startswith(ADOBE_INDEX) else None


def sixteen_bits(image: ImageFile.ImageFile, content: bytes) -> NDArray[np.uint16] | None:
    """A PNG's 16-bit values `[H, W, channels]`; None where the opened picture has fewer bits.

    Pillow's RGB has only the high bytes: the low ones are read by decoding with the other byte order.
    """
    if image.format != "PNG" or not image.tile or not str(image.tile[0].args).endswith(";16B"):
        return None
    if image.mode.startswith("I"):
        image.load()
        return np.asarray(image).astype(np.uint16)[..., None]
    raw = str(image.tile[0].args)
    low = Image.open(BytesIO(content), formats=("PNG",))
    # Grey and alpha in 16 bits have as many bytes as RGBA in 8, with the same filters and interlacing.
    low.tile = [low.tile[0]._replace(args="RGBA" if raw == "LA;16B" else raw.replace("16B", "16L"))]
    low.load()
    second: NDArray[np.uint16] = np.asarray(low).astype(np.uint16)
    if raw == "LA;16B":
        return (second[..., ::2] << 8 | second[..., 1::2]).astype(np.uint16)
    image.load()
    return (np.asarray(image).astype(np.uint16) << 8 | second).astype(np.uint16)
