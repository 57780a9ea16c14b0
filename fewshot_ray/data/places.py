"""Where pictures come from: a folder, a zip, a Parquet file, each on disk or at an fsspec URL, or the embedded digits.

Everything is read into memory, and nothing is unpacked to disk. What is remote is copied to this machine's disk once (`copies`).
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from fewshot_ray.copies import local_copies, local_copy
from fewshot_ray.data.digits import digit_indices, digits
from fewshot_ray.errors import UserError
from fewshot_ray.patience import is_transient, patiently, place_errors, reason
from fewshot_ray.spec.places import READABLE, UNREADABLE
from fewshot_ray.storage import open_file, open_place

MAX_FILE_BYTES = 256 * 2**20
READS_AT_ONCE = 8
IMAGE_COLUMN_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png", "webp", "bytes")
IMAGE_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")


class Picture(NamedTuple):
    """A picture as it is stored: `content` is the encoded file, or `problem` says why there is none."""

    name: str
    content: bytes
    problem: str = ""


def pictures(place: str) -> Iterator[Picture]:
    """Every picture at `place`, in natural name order (Parquet: in the order of the rows).

    In folders and zips hidden files, `__MACOSX` and whatever is not a picture by its ending are passed over.
    Raises UserError where the place is missing, cannot be reached, or is none of the kinds above.
    """
    if place.startswith("embedded://"):
        yield from _embedded(place)
        return
    with _reported(place):
        filesystem, path = open_place(os.path.expanduser(place))
        is_folder = patiently(lambda: _is_folder(place, filesystem, path), place)
    kind = PurePosixPath(place.split("?")[0]).suffix.lower()
    if is_folder:
        yield from _in_folder(place, filesystem, path)
    elif kind == ".zip":
        with _reported(place), open_file(_nearest(place, filesystem, path)) as file:
            yield from _in_zip(file)
    elif kind == ".parquet":
        with _reported(place), open_file(_nearest(place, filesystem, path)) as file:
            yield from _in_parquet(place, file)
    else:
        raise UserError(f"images {place}: is a single file; a folder, a .zip or a .parquet file of pictures is right")


def _is_folder(place: str, filesystem: Any, path: str) -> bool:
    """Whether it is one, and not a file. Raises OSError where it is neither."""
    if filesystem.isdir(path):
        return True
    if not filesystem.exists(path):
        raise FileNotFoundError(place)
    if not _is_plain_file(filesystem, path):
        raise OSError("no ordinary file")
    return False


def _nearest(place: str, filesystem: Any, path: str) -> str:
    """The file itself on disk, or this machine's copy of a remote one."""
    if isinstance(filesystem, LocalFileSystem):
        return os.path.expanduser(place)
    return str(local_copy(place, filesystem, path))


def _copied(place: str, filesystem: Any, listing: dict[str, dict[str, Any]], wanted: Sequence[str]) -> dict[str, Path]:
    """Copies of a remote folder's pictures by their path there; none of a folder on disk, nor where one of them can't be read."""
    if isinstance(filesystem, LocalFileSystem):
        return {}
    # A key may hold what no file's name may.
    names = {path: hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:24] for path in wanted}
    try:
        folder = local_copies(place, filesystem, listing, names)
    except place_errors():
        return {}
    return {path: folder / name for path, name in names.items()}


def _in_folder(place: str, filesystem: Any, root: str) -> Iterator[Picture]:
    prefix = filesystem._strip_protocol(root).rstrip("/") + "/"
    with _reported(place):
        found: dict[str, dict[str, Any]] = patiently(lambda: filesystem.find(root, detail=True), place)
    sizes = {path.removeprefix(prefix): int(info.get("size") or 0) for path, info in found.items()}

    def read(name: str) -> Picture:
        if problem := _problem(name, sizes[name]):
            return Picture(name, b"", problem)
        if not _is_plain_file(filesystem, prefix + name):
            return Picture(name, b"", "no ordinary file")
        if prefix + name in copies:
            return Picture(name, copies[prefix + name].read_bytes())
        try:
            # One by one: fsspec's `cat` of several takes `[1]` in a name for a pattern.
            return Picture(name, patiently(lambda: filesystem.cat_file(prefix + name), place))
        except place_errors() as error:
            return Picture(name, b"", reason(error))

    names = _pictures_among(sizes)
    copies = _copied(place, filesystem, found, [prefix + name for name in names if not _problem(name, sizes[name])])
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for start in range(0, len(names), 4 * READS_AT_ONCE):
            yield from pool.map(read, names[start : start + 4 * READS_AT_ONCE])


def _is_plain_file(filesystem: Any, path: str) -> bool:
    """On disk not a pipe, which would be waited for, nor a link to nothing; elsewhere there is nothing but files."""
    return not isinstance(filesystem, LocalFileSystem) or os.path.isfile(path)


def _in_zip(file: IO[bytes]) -> Iterator[Picture]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        for name in _pictures_among(entries):
            problem = "is encrypted" if entries[name].flag_bits & 1 else _problem(name, entries[name].file_size)
            if problem:
                yield Picture(name, b"", problem)
                continue
            try:
                picture = Picture(name, archive.read(entries[name]))
            except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, NotImplementedError, EOFError) as error:
                if is_transient(error):  # the place, not the archive
                    raise
                picture = Picture(name, b"", f"damaged in the archive: {reason(error)}")
            yield picture


def _in_parquet(place: str, file: IO[bytes]) -> Iterator[Picture]:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    column = _image_column(place, table)
    row = 0
    for batch in table.iter_batches(batch_size=64, columns=[column]):
        for value in batch.column(0).to_pylist():
            path = value.get("path") if isinstance(value, dict) else None
            content = value.get("bytes") if isinstance(value, dict) else value
            name = f"row {row} ({path})" if path else f"row {row}"
            yield Picture(name, content) if content else Picture(name, b"", "holds no bytes")
            row += 1


def _image_column(place: str, table: Any) -> str:
    """The column of encoded images: by its type, then by its name, then by how its first value begins."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))

    def holds_images(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
        return holds_bytes(kind)

    schema = table.schema_arrow
    candidates: list[str] = [field.name for field in schema if holds_images(field.type)]
    if not candidates:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"
        raise UserError(
            f"images {place}: no column holds images (columns: {columns}); a binary column of PNG, JPEG or WebP files, "
            "or a struct with such a field `bytes`, is right"
        )
    named = [column for name in IMAGE_COLUMN_NAMES for column in candidates if column.lower() == name]
    begins_right = [column for column in candidates if _begins_like_an_image(table, column)]
    return (named or begins_right or candidates)[0]


def _begins_like_an_image(table: Any, column: str) -> bool:
    for batch in table.iter_batches(batch_size=1, columns=[column]):
        value = batch.column(0)[0].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        return bool(content and content.startswith(IMAGE_BEGINNINGS))
    return False


def _embedded(place: str) -> Iterator[Picture]:
    url = urlsplit(place)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    seed = query.pop("seed", "0")
    if url.netloc != "digits" or query or not re.fullmatch(r"\d+", seed):
        raise UserError(f"images {place}: is not embedded; embedded://digits/shots?seed=0 (or source, target, validation, test) is right")
    part = url.path.strip("/")
    images, labels = digits(part, int(seed))
    domain = "source" if part == "source" else "target"
    for index, image, label in zip(digit_indices(part, int(seed)), images, labels.tolist(), strict=True):
        encoded = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(encoded, "PNG", compress_level=0)
        yield Picture(f"digits-{domain}-{index:04d}-class{label}.png", encoded.getvalue())


def _pictures_among(names: Sequence[str] | dict[str, Any]) -> list[str]:
    chosen = []
    for name in names:
        path = PurePosixPath(name)
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
        if not hidden and path.suffix.lower() in READABLE + UNREADABLE:
            chosen.append(name)
    return sorted(chosen, key=natural_order)


def natural_order(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A sorting key that puts `img2.png` before `img10.png`, whatever the case of the letters."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts], name


def _problem(name: str, size_bytes: int) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in UNREADABLE:
        return f"{suffix[1:].upper()} is not read"
    if size_bytes > MAX_FILE_BYTES:
        return f"larger than {MAX_FILE_BYTES >> 20} MiB"
    return ""


@contextmanager
def _reported(place: str) -> Iterator[None]:
    """Turn what goes wrong while a place is opened into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"images {place}: there is no such file or folder; give a folder, a .zip or a .parquet file") from error
    except zipfile.BadZipFile as error:
        raise UserError(f"images {place}: is no readable zip archive ({reason(error)})") from error
    except place_errors() as error:
        raise UserError(f"images {place}: cannot be read ({reason(error)})") from error
