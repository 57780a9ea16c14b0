"""Encoded pictures of any size and kind -> uint8 tensors of the model's size."""

from __future__ import annotations

import hashlib
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fewshot_ray.data.colour import (
    CODED,
    UnknownColourError,
    exif_encoding,
    png_chunks,
    png_encoding,
    rounded,
    separated,
    sixteen_bits,
    to_srgb,
    with_profile,
)
from fewshot_ray.data.likeness import likenesses, perceptual_hash
from fewshot_ray.data.places import Picture, pictures
from fewshot_ray.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP")
EXIF_ORIENTATION = 0x0112
# EXIF 2.32, table 6: the transposition that turns the stored picture upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(Exception):
    """A file is no readable picture; the message says why in a few words."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """A picture as it is to be displayed."""

    image: Image.Image
    """RGB, sRGB, upright."""
    note: str
    """Why its colours may be wrong, in a few words; empty where they aren't in doubt."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Pictures of one size, in a fixed order."""

    images: Tensor
    """uint8 [N, C, H, W]."""
    names: tuple[str, ...]
    """Name of each in messages: its path within the place."""
    hashes: tuple[str, ...]
    """sha256 of each picture's content *before* it was resized; see `content_hash`."""
    perceptual: tuple[int | None, ...] = ()
    """Perceptual hash of each (`likeness.perceptual_hash`), also before resizing. Empty where pictures are compared by content alone."""
    notes: tuple[str, ...] = ()
    """By name, why a picture's colours may be wrong."""

    def __len__(self) -> int:
        return len(self.hashes)

    def select(self, indices: Iterable[int]) -> ImageSet:
        """The pictures at `indices`, in that order."""
        chosen = list(indices)
        return ImageSet(
            self.images[torch.tensor(chosen, dtype=torch.long)],
            tuple(self.names[index] for index in chosen),
            tuple(self.hashes[index] for index in chosen),
            tuple(self.perceptual[index] for index in chosen) if self.perceptual else (),
        )

    def without(self, other: ImageSet) -> ImageSet:
        """The pictures that are not in `other`, neither by content nor re-encoded."""
        taken = {likeness.index for likeness in likenesses(self, other) if likeness.same}
        return self.select(index for index in range(len(self)) if index not in taken)

    def distinct(self) -> ImageSet:
        """The pictures without repetitions: the first of each content."""
        first: dict[str, int] = {}
        for index, content in enumerate(self.hashes):
            first.setdefault(content, index)
        return self.select(first.values())


def read_images(place: str, *, size: int | tuple[int, int], channels: int) -> ImageSet:
    """All pictures at `place` (see `places.pictures`), resized and cropped to `size` (H, W), as 1 or 3 channels.

    Raises UserError where the place is missing or empty, and where any picture is unreadable: in that case nothing is left
    out in silence, the first three are named and the rest counted.
    """
    if channels not in (1, 3):
        raise UserError(f"images {place}: a model with {channels} channels cannot be trained on pictures; 1 (grey) or 3 (RGB) is right")
    pixels, found = _read(place, lambda image: to_tensor(fit(image, size), channels))
    return replace(found, images=torch.stack(pixels))


def read_pictures(place: str, *, left_out: Callable[[str], bool]) -> ImageSet:
    """All pictures at `place` at their own size, which must be one; grey `[N, 1, H, W]` where all are grey, else RGB.

    `left_out` says of a name whether the picture isn't read. Raises UserError as `read_images`, and where the sizes differ.
    """
    sizes: Counter[tuple[int, int]] = Counter()

    def keep(image: Image.Image) -> Tensor:
        sizes[image.size] += 1
        return to_tensor(image, 3)

    pixels, found = _read(place, keep, left_out)
    if len(sizes) > 1:
        shown = ", ".join(f"{count} of {width}x{height}" for (width, height), count in sizes.most_common(3))
        raise UserError(
            f"images {place}: of {len(sizes)} sizes ({shown}{', ...' if len(sizes) > 3 else ''}); images of one size, "
            "or --size SIDE, to which all are scaled and cropped, would be right"
        )
    images = torch.stack(pixels)
    grey = bool((images == images[:, :1]).all())
    return replace(found, images=images[:, :1].clone() if grey else images)


def _read(
    place: str, convert: Callable[[Image.Image], Tensor], left_out: Callable[[str], bool] = lambda name: False
) -> tuple[list[Tensor], ImageSet]:
    """The pixels of all pictures at a place, and the rest of the set. Raises UserError as `read_images`."""
    pixels: list[Tensor] = []
    names: list[str] = []
    hashes: list[str] = []
    perceptual: list[int | None] = []
    notes: list[str] = []
    unreadable: list[str] = []
    for picture in pictures(place):
        if left_out(picture.name):
            continue
        try:
            read = decoded(picture)
        except UnreadableImageError as error:
            unreadable.append(f"{picture.name} ({error})")
            continue
        pixels.append(convert(read.image))
        names.append(picture.name)
        hashes.append(content_hash(read.image))
        perceptual.append(perceptual_hash(read.image))
        notes += [f"{picture.name}: {read.note}"] if read.note else []
    refuse_unreadable(place, unreadable, len(names) + len(unreadable))
    return pixels, ImageSet(torch.empty(0), tuple(names), tuple(hashes), tuple(perceptual), tuple(notes))


def refuse_unreadable(place: str, unreadable: Sequence[str], files: int) -> None:
    """Raise UserError where there are no files, or unreadable ones among them."""
    if files == 0:
        raise UserError(f"images {place}: holds no pictures; at least one PNG, JPEG or WebP file is right")
    if unreadable:
        more = f", and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
        raise UserError(
            f"images {place}: {len(unreadable)} of {files} files cannot be read: {', '.join(unreadable[:3])}{more}; "
            "whole PNG, JPEG or WebP files are right"
        )


def decode(picture: Picture) -> Image.Image:
    """The picture of `decoded`, without its note on colours."""
    return decoded(picture).image


def decoded(picture: Picture) -> Decoded:
    """The picture upright (EXIF orientation), as sRGB, transparency on white; the first frame of an animation.

    Raises UnreadableImageError for text, a truncated file, another format, HDR, or more pixels than Pillow's limit (decompression bombs).
    """
    if picture.problem:
        raise UnreadableImageError(picture.problem)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # damaged EXIF: the picture itself is intact
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(picture.content), formats=FORMATS)
            deep = sixteen_bits(image, picture.content)
            image.load()
            orientation = image.getexif().get(EXIF_ORIENTATION)
            upright = _in_srgb(image, deep, picture.content)
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not a PNG, JPEG or WebP image") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError(_too_large(picture.content)) from error
    # What Pillow's decoders raise on damaged files.
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise UnreadableImageError(" ".join(str(error).split()) or "damaged") from error
    if orientation in UPRIGHT:
        return Decoded(upright.image.transpose(UPRIGHT[orientation]), upright.note)
    return upright


def _too_large(content: bytes) -> str:
    """The message for a picture above the limit: its size and what to do. Only the header is read."""
    millions = f"{(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.3g} million"
    for kind in FORMATS:
        with suppress(OSError, SyntaxError, ValueError, TypeError, LookupError, struct.error, Image.DecompressionBombError):
            width, height = Image.OPEN[kind][0](BytesIO(content), "").size
            return f"{width} x {height} pixels, more than {millions}; a smaller copy is right, it is scaled to the model's size anyway"
    return f"more than {millions} pixels; a smaller copy is right"


def _in_srgb(image: Image.Image, deep: NDArray[np.uint16] | None, content: bytes) -> Decoded:
    """A loaded picture as RGB on white; `deep`: its 16-bit values, where it has them."""
    note, encoding, profile = "", None, image.info.get("icc_profile")
    chunks = png_chunks(content) if image.format == "PNG" else {}
    try:
        if image.format == "PNG":
            encoding = png_encoding(chunks)
        elif not profile:
            encoding = exif_encoding(image.getexif())
    except UnknownColourError as error:
        if CODED in chunks:
            raise UnreadableImageError(str(error)) from error
        note = f"{error}; its values are treated as sRGB"
    colours, alpha = _separated(image, chunks) if deep is None else separated(deep, image.info.get("transparency"))
    if encoding is not None:
        colours = to_srgb(np.asarray(colours.convert("RGB")) if isinstance(colours, Image.Image) else colours, encoding)
    elif not isinstance(colours, Image.Image):
        colours = rounded(colours)
    if encoding is None and profile and CODED not in chunks:
        try:
            colours = with_profile(colours, profile)
        except UnknownColourError as error:
            note = f"{error}; its values are treated as sRGB"
    elif colours.mode == "CMYK":
        note = "CMYK without a colour profile; its colours are guessed"
    rgb = colours.convert("RGB")
    if alpha is None:
        return Decoded(rgb, note)
    rgb.putalpha(alpha)
    return Decoded(Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB"), note)


def _separated(image: Image.Image, chunks: Mapping[bytes, bytes]) -> tuple[Image.Image, Image.Image | None]:
    """Colours in mode L, RGB or CMYK, and alpha (L) where the picture has any."""
    key, bits = image.info.get("transparency"), chunks.get(b"IHDR", b"")[8:9]
    if isinstance(key, int) and image.mode == "L" and bits in (b"\2", b"\4"):
        image.info["transparency"] = key * 255 // (2 ** bits[0] - 1)  # Pillow scales the picture to 8 bits but not its transparent colour
    grey = image.mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        return image if image.mode == "CMYK" else image.convert("L" if grey else "RGB"), None
    rgba = image.convert("RGBA")
    return rgba.convert("RGB").convert("L") if grey else rgba.convert("RGB"), rgba.getchannel("A")


def content_hash(image: Image.Image) -> str:
    """sha256 (hex) of the size and the RGB pixels of a decoded picture: the same for every lossless encoding."""
    width, height = image.size
    return hashlib.sha256(f"{width}x{height}:".encode() + image.tobytes()).hexdigest()


def fit(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Scale the picture to just cover `size` (H, W), with antialiasing (Lanczos), and crop the centre.

    A picture of that size is unchanged, bit for bit.
    """
    height, width = (size, size) if isinstance(size, int) else size
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image, channels: int) -> Tensor:
    """RGB picture -> uint8 [C, H, W]; one channel is its luma (ITU-R 601-2), which leaves grey as it is."""
    pixels = np.array(image.convert("L") if channels == 1 else image)
    return torch.from_numpy(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1).copy())


def to_model_range(images: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 -1 .. 1."""
    return images.float() / 127.5 - 1


def from_model_range(images: Tensor) -> Tensor:
    """Float -1 .. 1 (clamped to it) -> uint8 0 .. 255, rounded to the nearest."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
