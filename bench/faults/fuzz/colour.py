"""Pictures whose files say of their colours what is wrong, rare, or contradicts itself."""

from __future__ import annotations

import io
import random
import shutil
import struct
import zlib
from pathlib import Path
from typing import Literal

from PIL import Image, ImageCms

from bench.faults.fuzz.bases import Bases, picture
from bench.faults.fuzz.case import Case, at_some_place, check_case
from bench.faults.fuzz.mutations import spoil_bytes

SIZE = 20
CHUNKS = (b"gAMA", b"cHRM", b"cICP", b"sRGB", b"tRNS", b"iCCP", b"sBIT", b"mDCV", b"cLLI", b"bKGD", b"eXIf", b"PLTE")
PIXELS = (
    *((1, 0, 1), (2, 0, 1), (4, 0, 1), (8, 0, 1), (8, 2, 3), (8, 3, 1), (8, 4, 2), (8, 6, 4)),
    *((16, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4)),
)
"""Bits a number, PNG's kind of colour, numbers a pixel."""
FILES = (
    *(("RGB", "PNG"), ("L", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("LA", "PNG"), ("1", "PNG"), ("I;16", "PNG")),
    *(("RGB", "WEBP"), ("RGBA", "WEBP"), ("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG")),
)
PROFILES: tuple[Literal["sRGB", "LAB", "XYZ"], ...] = ("sRGB", "LAB", "XYZ")
SPACES = (b"RGB ", b"GRAY", b"CMYK", b"Lab ", b"XYZ ", b"YCbr", b"HSV ", b"2CLR", b"nmcl", b"\0\0\0\0")


def colour(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """One odd picture among whole ones: a profile, a PNG's chunks, a camera's word."""
    photos = folder / "photos"
    shutil.copytree(bases.folder / rng.choice(("photos", "test")), photos)
    kind = rng.choice((_profile, _profile, _chunks, _chunks, _exif))
    content, said = kind(rng)
    name = f"odd.{rng.choice(('png', 'jpg', 'webp'))}"
    (photos / name).write_bytes(content)
    return check_case(folder, at_some_place(rng, bases, "photos"), said, name, "photos")


def _profile(rng: random.Random) -> tuple[bytes, str]:
    """Whole, damaged, of another space than the picture's, of no colours, or in pieces."""
    space = rng.choice(PROFILES)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(space)).tobytes()
    said: str = space
    way = rng.choice(("whole", "bytes", "bytes", "space", "space", "tags", "random", "cut", "empty", "long"))
    if way == "bytes":
        profile, said = spoil_bytes(rng, profile)
    elif way in ("space", "tags"):
        at = rng.choice((12, 16, 16, 20, 36, 64)) if way == "space" else 128 + 4 * rng.randrange(40)
        value = rng.choice(SPACES) if way == "space" else rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", rng.randbytes(4)))
        profile, said = profile[:at] + value + profile[at + 4 :], f"{space}, {value!r} at {at}"
    elif way != "whole":
        profile = {"random": rng.randbytes(200), "cut": profile[: rng.randrange(1, 200)], "empty": b"\0", "long": profile * 40}[way]
        said = f"{space} {way}"
    mode, kind = rng.choice(FILES)
    buffer = io.BytesIO()
    picture(rng.randrange(100)).convert("L" if mode == "I;16" else mode).convert(mode).save(buffer, kind, icc_profile=profile)
    return buffer.getvalue(), f"{kind} in {mode}, profile {said}"


def _chunks(rng: random.Random) -> tuple[bytes, str]:
    """A PNG of any depth whose chunks about colours hold anything, twice, or after the picture."""
    depth, kind, numbers = rng.choice(PIXELS)
    names = rng.choices(CHUNKS, k=rng.randint(1, 4))
    extra = [_chunk(name, _about_colours(rng, name)) for name in names]
    row = rng.randbytes((SIZE * numbers * depth + 7) // 8) if kind != 3 else bytes(rng.randrange(4) for _ in range(SIZE))
    palette = _chunk(b"PLTE", rng.randbytes(3 * rng.choice((1, 4, 256)))) if kind == 3 else b""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, depth, kind, 0, 0, rng.choice((0, 0, 0, 1))))
    data = _chunk(b"IDAT", zlib.compress((b"\0" + row) * SIZE * 2))
    before, after = (extra, []) if rng.random() < 0.85 else ([], extra)
    content = b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + palette + data + b"".join(after) + _chunk(b"IEND", b"")
    return content, f"{depth} bits of kind {kind}, {b' '.join(names).decode()}"


def _about_colours(rng: random.Random, name: bytes) -> bytes:
    likely = {
        b"gAMA": struct.pack(">I", rng.choice((0, 1, 10_000, 45_455, 100_000, 2**31, 2**32 - 1))),
        b"cHRM": struct.pack(">8I", *(rng.choice((0, 1, 31_270, 64_000, 10**5, 2**32 - 1)) for _ in range(8))),
        b"cICP": bytes((rng.choice((0, 1, 2, 9, 12, 22, 255)), rng.choice((0, 1, 2, 4, 8, 13, 16, 18, 255)), rng.choice((0, 1)), 1)),
        b"iCCP": b"name\0\0" + zlib.compress(rng.choice((b"", rng.randbytes(200), bytes(10**6)))),
    }
    if name in likely and rng.random() < 0.6:
        return likely[name]
    length = rng.choice((0, 1, 2, 4, 6, 24, 32, rng.randint(0, 40)))
    return rng.choice((bytes(length), rng.randbytes(length)))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _exif(rng: random.Random) -> tuple[bytes, str]:
    """A camera's word for Adobe RGB, and what it says beside, in types that it has not."""
    exif = Image.Exif()
    odd = (0, 1, 6, 9, 65_535, "R03", "R98", b"R03\0", b"\xff\xfe", 2.5, (1, 2))
    tags = rng.sample((0x0112, 0xA001, 0xA005, 0x8769, 0x0103, 0x0128, 0x013E, 0x013F, 0x012D), rng.randint(1, 4))
    for tag in tags:
        exif[tag] = rng.choice(odd) if tag != 0xA005 or rng.random() < 0.5 else {1: rng.choice(odd[5:9])}
    try:
        block = exif.tobytes()
    except (struct.error, TypeError, ValueError, AttributeError, KeyError):  # what a tag of that type can't hold
        block = b"Exif\0\0" + rng.randbytes(60)
    if rng.random() < 0.4:
        block = b"Exif\0\0" + spoil_bytes(rng, block[6:])[0]
    buffer = io.BytesIO()
    kind = rng.choice(("PNG", "JPEG", "WEBP"))
    picture(rng.randrange(100)).save(buffer, kind, exif=block[: 2**15])
    return buffer.getvalue(), f"EXIF {[hex(tag) for tag in tags]} in {kind}"
