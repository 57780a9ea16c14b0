"""Pictures under any ending, and what trainers, systems and people put beside them: each file is read, or counted as passed over."""

from __future__ import annotations

import io
import os
import random
import zipfile
from pathlib import Path
from uuid import uuid4

import fsspec

from bench.faults.fuzz.bases import Bases, picture
from bench.faults.fuzz.case import Case, changed, check_case

ENDINGS = (
    *("", ".jfif", ".JPG", ".jpe", ".pjpeg", ".gif", ".download", ".jpg.webp", ".png~", ".bin", ".pt", ".mask", ".tiff", ".heic", ".ppm"),
    *(".parquet", ".zip", ".txt", ".json", ".PnG", ". png", ".", ".jpg!d", ".jpeg@2x", ".tmp", ".csv", ".mp4"),
)
BESIDE = (
    *("-masklabel.png", "-condlabel.png", "_mask.png", ".mask.png", "-depth.png", "_thumb.jpg", "-150x150.png", ".mask", ".txt", ".json"),
    *(".npz", ".caption", ".xmp", ".aae", " copy", ".mov", ".safetensors", "_ldm.npz", "", ".DS_Store", ".jpg.txt"),
)
SYSTEM = ("@eaDir", "__MACOSX")
FOLDERS = ("masks", "10_face", "thumbnails", "images", "deep/er/still", "conditioning", "1_x/masked_loss", "a b", *SYSTEM, "mask")
ALONE = (
    *("Thumbs.db", "desktop.ini", ".DS_Store", "README", "data.zip", "album.parquet", "sound.wav", "film.mp4", "metadata.jsonl"),
    ".gitignore",
)
BEGINNINGS = (
    *(b"", b"words", b"RIFF\0\0\0\0WAVEfmt ", b"PK\3\4", b"PAR1", b"\0" * 40, b"%PDF-1.7", b"BM", b"GIF", b"\x89PNG", b"ftyp", b"P"),
)


def endings(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A folder, a zip or a URL of them."""
    files = _files(rng)
    where = rng.choice(("folder", "folder", "zip", "memory"))
    extra = 0
    if where == "folder":
        _write(folder / "photos", files)
        extra = _links(rng, folder)
        place = "photos"
    elif where == "zip":
        place = "photos.zip"
        with zipfile.ZipFile(folder / place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    else:
        place = f"memory://{uuid4().hex}"
        filesystem, path = fsspec.core.url_to_fs(place)
        for name, content in files.items():
            filesystem.pipe_file(f"{path}/{name}", content)
    tree = changed(bases, "short", target={"images": place})
    case = check_case(folder, tree, f"{where}: {', '.join(files)}", place.removesuffix(".zip"), "photos")
    case.pictures = extra + len(files if where != "folder" else {_entered(name) for name in files})
    return case


def _entered(name: str) -> str:
    """On disk a system's folder isn't entered, and counts as one."""
    parts = name.split("/")
    return "/".join(parts[: next((depth + 1 for depth, part in enumerate(parts) if part in SYSTEM), len(parts))])


def _files(rng: random.Random) -> dict[str, bytes]:
    """By name; no two pictures are the same."""
    seeds = iter(range(10**6))
    files: dict[str, bytes] = {}
    for number in range(rng.randint(3, 8)):
        prefix = f"{rng.choice(FOLDERS)}/" if rng.random() < 0.3 else ""
        stem = f"{prefix}{rng.choice(('IMG_', 'img', 'ü ', 'a.b '))}{number}"
        files[stem + rng.choice((".png", ".jpg", rng.choice(ENDINGS), rng.choice(ENDINGS)))] = _encoded(rng, next(seeds))
        while rng.random() < 0.4:
            content = _encoded(rng, next(seeds)) if rng.random() < 0.6 else rng.choice(BEGINNINGS)
            above, _, name = stem.rpartition("/")
            inside = f"{rng.choice(FOLDERS)}/" if rng.random() < 0.3 else ""
            files.setdefault(f"{above}/{inside}{name}{rng.choice(BESIDE)}".lstrip("/"), content)
    for name in rng.sample(ALONE, rng.randint(0, 3)):
        files[name] = rng.choice(BEGINNINGS)
    # A name that is another's folder can't be there too.
    return {name: content for name, content in files.items() if not any(other.startswith(f"{name}/") for other in files)}


def _encoded(rng: random.Random, seed: int) -> bytes:
    buffer = io.BytesIO()
    image = picture(seed)
    image.putpixel((1, 1), (seed * 61 % 256, seed * 17 % 256, seed // 7 * 40 % 256))
    image.save(buffer, rng.choice(("PNG", "WEBP")), lossless=True)  # JPEG might make two alike the same
    return buffer.getvalue()


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _links(rng: random.Random, folder: Path) -> int:
    """Links to pictures elsewhere, to a folder of them, and to what is read already: how many files or links more there are."""
    more = 0
    if rng.random() < 0.3:
        _write(folder / "album", {"deep/1": _encoded(rng, 901), "2.png": _encoded(rng, 902), "notes.md": b"words"})
        (folder / "photos" / "linked").symlink_to(rng.choice((folder / "album", Path("..") / "album")), target_is_directory=True)
        more += 3
    if rng.random() < 0.2:
        (folder / "photos" / "again").symlink_to(".", target_is_directory=True)
        more += 1
    if rng.random() < 0.2:
        (folder / "one").write_bytes(_encoded(rng, 903))
        os.symlink(folder / "one", folder / "photos" / f"one{rng.choice(ENDINGS)}")
        more += 1
    return more
