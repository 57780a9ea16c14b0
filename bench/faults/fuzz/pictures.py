"""Malformed pictures, zips and Parquet files."""

from __future__ import annotations

import io
import os
import random
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from bench.faults.fuzz.bases import Bases
from bench.faults.fuzz.case import Case, changed, check_case
from bench.faults.fuzz.mutations import spoil_bytes

ODD_NAMES = ("a\nb.png", "\x1b[31m.png", "ü.png", "a" * 200 + ".png", "[1].png", "*.png", "%s{}.png", " .png", "-rf.png", "\u202egnp.png")


def images(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A folder or a zip of pictures with one that is damaged, or odd things among them."""
    photos = folder / "photos"
    shutil.copytree(bases.folder / "photos", photos)
    chosen = rng.choice(sorted(photos.iterdir()))
    way = rng.choice(
        ("bytes",) * 9 + ("odd name", "latin name", "loop", "loops", "dangling", "fifo", "folder", "bomb", "swapped", "modes", "many")
    )
    names = [chosen.name, "photos"]
    if way == "bytes":
        content, said = spoil_bytes(rng, chosen.read_bytes())
        chosen.write_bytes(content)
    else:
        said = way
        _ODDITIES[way](rng, photos, chosen)
    if rng.random() < 0.3 and way not in ("fifo", "loop", "loops", "dangling", "latin name", "odd name"):
        said += f", zipped, {_zip(rng, photos, folder / 'photos.zip')}"
        return check_case(folder, changed(bases, "short", target={"images": "photos.zip"}), said, *names)
    return check_case(folder, changed(bases, "short", target={"images": "photos"}), f"{chosen.name}: {said}", *names)


def _link_loop(folder: Path, count: int) -> None:
    for number in range(count):
        (folder / f"loop{number}").symlink_to(folder, target_is_directory=True)


def _odd_pixels(rng: random.Random, folder: Path, chosen: Path) -> None:
    """A picture of a mode, size or palette that nobody thinks of."""
    path = folder / f"mode.{rng.choice(('png', 'jpg', 'webp'))}"
    size = rng.choice([(1, 1), (1, 5000), (5000, 1), (20, 20)])
    image = Image.new(rng.choice(("1", "L", "LA", "P", "PA", "I;16", "I", "CMYK", "RGBA", "F", "YCbCr", "HSV")), size)
    try:
        image.save(path, rng.choice(("PNG", "JPEG", "WEBP", "GIF", "TIFF")), transparency=rng.choice((0, 300, b"\0\1", (1, 2, 3))))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):  # what that format can't hold
        path.write_bytes(b"")


def _bomb(rng: random.Random, folder: Path, chosen: Path) -> None:
    """A PNG whose header claims more pixels than there are, or than there may be."""
    content = bytearray((folder / "0.png").read_bytes())
    content[16:24] = rng.choice((b"\0\0\xff\xff\0\0\xff\xff", b"\0\0\0\0\0\0\0\1", b"\x7f\xff\xff\xff\0\0\0\1", b"\0\0\x20\0\0\0\x20\0"))
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(content)


_ODDITIES: dict[str, Callable[[random.Random, Path, Path], object]] = {
    "odd name": lambda rng, folder, chosen: chosen.rename(folder / rng.choice(ODD_NAMES)).write_bytes(
        rng.choice((b"x", chosen.name.encode()))
    ),
    "latin name": lambda rng, folder, chosen: chosen.rename(folder / os.fsdecode(rng.choice((b"\xfc.png", b"caf\xe9.jpg")))),
    "loop": lambda rng, folder, chosen: _link_loop(folder, 1),
    "loops": lambda rng, folder, chosen: _link_loop(folder, 3),
    "dangling": lambda rng, folder, chosen: (folder / "gone.png").symlink_to(rng.choice(("gone.png", "nowhere.png", "/nowhere/x.png"))),
    "fifo": lambda rng, folder, chosen: os.mkfifo(folder / "fifo.png"),
    "folder": lambda rng, folder, chosen: (folder / "album.png").mkdir(),
    "bomb": _bomb,
    "swapped": lambda rng, folder, chosen: chosen.write_bytes((folder / rng.choice(("0.png", "1.jpg", "2.webp"))).read_bytes()),
    "modes": _odd_pixels,
    "many": lambda rng, folder, chosen: [(folder / f"x{number}.png").write_bytes(b"") for number in range(40)],
}


def _zip(rng: random.Random, photos: Path, path: Path) -> str:
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(photos.rglob("*")):
            archive.write(file, rng.choice((file.name, file.name, f"a/{file.name}", f"../{file.name}", f"/{file.name}", "same.png")))
    if rng.random() < 0.5:
        return "whole"
    content, said = spoil_bytes(rng, path.read_bytes())
    if rng.random() < 0.4:  # in the directory at the end
        content, said = path.read_bytes(), "its directory"
        at = content.rfind(b"PK\1\2") + rng.randrange(4, 46)
        content = content[:at] + rng.randbytes(1) + content[at + 1 :]
    path.write_bytes(content)
    return said


def parquet(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A Parquet file whose bytes, columns or values are wrong."""
    path, said = folder / "photos.parquet", ""
    content = (bases.folder / "photos.parquet").read_bytes()
    way = rng.random()
    if way < 0.65:
        content, said = spoil_bytes(rng, content)
    elif way < 0.75:  # the footer alone
        at = len(content) - rng.randrange(1, 900)
        content, said = content[:at] + rng.randbytes(1) + content[at + 1 :], "footer"
    else:
        column, said = rng.choice(_columns([file.read_bytes() for file in sorted((bases.folder / "photos").iterdir())]))
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pa.table({rng.choice(("image", "x", "a\nb", "")): column}), buffer)
        content = buffer.getvalue()
    path.write_bytes(content)
    return check_case(folder, changed(bases, "short", target={"images": "photos.parquet"}), said, "photos.parquet")


def _columns(files: list[bytes]) -> list[tuple[Any, str]]:
    return [
        (pa.array(["a", "b"]), "texts"),
        (pa.array([1, 2]), "numbers"),
        (pa.array([None, None]), "nulls"),
        (pa.array([], pa.binary()), "no rows"),
        (pa.array([None, *files], pa.binary()), "a null"),
        (pa.array([b"", *files]), "an empty value"),
        (pa.array([files, files]), "lists of files"),
        (pa.array([{"bytes": {"bytes": content}} for content in files]), "a struct in a struct"),
        (pa.array([{"bytes": content, "path": number} for number, content in enumerate(files)]), "paths that are numbers"),
        (pa.array([{"bytes": content, "path": "a\nb"} for content in files]), "paths of two lines"),
        (pa.array([{"bytes": None, "path": None} for _ in files]), "structs of nulls"),
        (pa.array([{"path": "x"} for _ in files]), "paths only"),
        (pa.array(files).dictionary_encode(), "a dictionary"),
        (pa.array(files, pa.large_binary()), "large binary"),
        (pa.array([content[:100].ljust(100, b"x") for content in files], pa.binary(100)), "binary of one size"),
        (pa.array([files[0][:-20], *files[1:]]), "a cut picture"),
        (pa.array([[content] for content in files]).cast(pa.list_(pa.binary(), 1)), "lists of one"),
    ]
