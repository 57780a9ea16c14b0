"""Reads pictures from a place: a folder, a zip, a Parquet file, each on disk or at an fsspec URL, or the embedded digits.

Archives are read in memory, not unpacked to disk. Remote files are copied to the local disk once (`copies`).
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
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import parse_qsl, urlsplit

from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from fewshot_ray.copies import local_copies, local_copy
from fewshot_ray.data.inputs import Listed, file_state, listed_file, listed_folder
from fewshot_ray.data.selection import (
    BEGINNING_BYTES,
    UNREADABLE,
    Selection,
    container,
    local_beginning,
    local_selection,
    select,
)
from fewshot_ray.data.tables import Picture, image_columns, rows
from fewshot_ray.errors import UserError
from fewshot_ray.patience import is_missing, is_transient, patiently, place_errors, reason
from fewshot_ray.spec.places import without_column
from fewshot_ray.storage import open_file, open_place

__all__ = ["Picture", "passed_over", "picture_files", "pictures"]

MAX_FILE_BYTES = 256 * 2**20
READS_AT_ONCE = 8
READ_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
ZIP_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, NotImplementedError, EOFError)


@dataclass(frozen=True)
class _Opened:
    """A place that exists."""

    place: str
    """The place without a Parquet column's name."""
    column: str | None
    filesystem: Any
    path: str
    kind: str
    """folder, zip or parquet."""


def pictures(place: str) -> Iterator[Picture]:
    """Every picture at `place`, in natural name order (Parquet: in the order of the shards and rows).

    `selection` decides which files are pictures; after a Parquet place `?column=NAME` names the column.
    Raises UserError where the place is missing, cannot be reached, holds no pictures, or is none of the kinds above.
    """
    if place.startswith("embedded://"):
        yield from _embedded(place)
        return
    it = _opened(place)
    if it.kind == "folder":
        yield from _in_folder(it)
        return
    with _reported(place), open_file(_nearest(it.place, it.filesystem, it.path)) as file:
        if it.kind == "zip":
            yield from _in_zip(place, file)
        else:
            yield from rows(place, file, it.column)


def passed_over(place: str) -> str:
    """The files of a place that aren't read, counted and named by kind; empty where there are none. Raises UserError."""
    if place.startswith("embedded://"):
        return ""
    it = _opened(place)
    if it.kind == "folder":
        chosen = _in_listing(it)[0]
        others = _other_columns(it, f"{it.place.rstrip('/')}/{chosen.names[0]}") if chosen.kind == "tables" and chosen.names else ""
        return ", ".join(filter(None, [others, chosen.summary()]))
    if it.kind == "parquet":
        return _other_columns(it, it.place)
    with _reported(place), open_file(_nearest(it.place, it.filesystem, it.path)) as file, zipfile.ZipFile(file) as archive:
        return _zip_selection(archive).summary()


def _other_columns(it: _Opened, file_place: str) -> str:
    import pyarrow.parquet

    filesystem, path = open_place(os.path.expanduser(file_place))
    with _reported(it.place), open_file(_nearest(file_place, filesystem, path)) as file:
        others = image_columns(it.place, pyarrow.parquet.ParquetFile(file), it.column)[1:]
    return f"{len(others)} columns of images ({', '.join(others)})" if others else ""


def _opened(place: str) -> _Opened:
    """Raises UserError."""
    bare, column = without_column(place)
    with _reported(place):
        filesystem, path = open_place(os.path.expanduser(bare))
        if patiently(lambda: _is_folder(place, filesystem, path), place):
            return _Opened(bare, column, filesystem, path, "folder")
        beginning = _beginning(filesystem, path)
    kind = container(bare.split("?")[0], beginning)
    if not kind:
        raise UserError(f"images {place}: is a single file; a folder, a .zip or a .parquet file of pictures is right")
    return _Opened(bare, column, filesystem, path, kind)


def _beginning(filesystem: Any, path: str) -> bytes:
    """A file's first bytes; empty where it can't be read."""
    if isinstance(filesystem, LocalFileSystem):
        return local_beginning(path)
    try:
        return bytes(patiently(lambda: filesystem.cat_file(path, start=0, end=BEGINNING_BYTES), path))
    except place_errors():
        return b""


def picture_files(place: str) -> Listed | None:
    """The files that `pictures` reads; None for embedded pictures. Raises UserError where the place is missing or can't be reached."""
    if place.startswith("embedded://"):
        return None
    it = _opened(place)
    if it.kind != "folder":
        with _reported(place):
            return listed_file(it.place)
    chosen, found = _in_listing(it)
    prefix = _prefix(it)
    if isinstance(it.filesystem, LocalFileSystem):
        with _reported(place):
            return listed_folder(place, Path(prefix), chosen.names)
    states = {name: file_state(found[prefix + name]) for name in chosen.names}
    readable = [prefix + name for name, state in states.items() if chosen.kind == "tables" or state.bytes <= MAX_FILE_BYTES]

    def locate() -> dict[str, Path]:
        return {path.removeprefix(prefix): copy for path, copy in _copied(it.place, it.filesystem, found, readable).items()}

    return Listed(place, states, locate)


def _is_folder(place: str, filesystem: Any, path: str) -> bool:
    """Whether it is a folder, not a file. Raises OSError where it is neither."""
    if filesystem.isdir(path):
        return True
    if not isinstance(filesystem, LocalFileSystem):
        filesystem.info(path)  # unlike `exists`, it raises the cause
    elif not filesystem.exists(path):
        raise FileNotFoundError(place)
    if not _is_plain_file(filesystem, path):
        raise OSError("no ordinary file")
    return False


def _nearest(place: str, filesystem: Any, path: str) -> str:
    """The file on disk: itself, or a local copy of a remote one."""
    if isinstance(filesystem, LocalFileSystem):
        return os.path.expanduser(place)
    return str(local_copy(place, filesystem, path))


def _copied(place: str, filesystem: Any, listing: dict[str, dict[str, Any]], wanted: Sequence[str]) -> dict[str, Path]:
    """Local copies of a remote folder's pictures by their remote path; empty for a folder on disk, or where one can't be read."""
    if isinstance(filesystem, LocalFileSystem):
        return {}
    # An object's key may have characters that a file name can't.
    names = {path: hashlib.sha256(path.encode(errors="surrogateescape")).hexdigest()[:24] for path in wanted}
    try:
        folder = local_copies(place, filesystem, listing, names)
    except place_errors():
        return {}
    return {path: folder / name for path, name in names.items()}


def _in_listing(it: _Opened) -> tuple[Selection, dict[str, dict[str, Any]]]:
    """The selected files of a folder, and for a remote one its listing by path. Raises UserError."""
    if isinstance(it.filesystem, LocalFileSystem):
        with _reported(it.place):
            return local_selection(it.path), {}
    prefix = _prefix(it)
    with _reported(it.place):
        found: dict[str, dict[str, Any]] = patiently(lambda: it.filesystem.find(it.path, detail=True), it.place)

    def beginnings(names: Sequence[str]) -> dict[str, bytes]:
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            return dict(zip(names, pool.map(lambda name: _beginning(it.filesystem, prefix + name), names), strict=True))

    return select([path.removeprefix(prefix) for path in found], beginnings), found


def _prefix(it: _Opened) -> str:
    return str(it.filesystem._strip_protocol(it.path)).rstrip("/") + "/"


def _in_folder(it: _Opened) -> Iterator[Picture]:
    chosen, found = _in_listing(it)
    if not chosen.names:
        raise _no_pictures(it.place, chosen)
    if chosen.kind == "tables":
        yield from _in_shards(it, chosen.names, found)
        return
    prefix = _prefix(it)

    def size(name: str) -> int:
        if found:
            return int(found[prefix + name].get("size") or 0)
        try:
            return os.stat(prefix + name).st_size
        except OSError:  # a dangling link, reported when it is read
            return 0

    def read(name: str) -> Picture:
        if size(name) > MAX_FILE_BYTES:
            return Picture(name, b"", f"larger than {MAX_FILE_BYTES >> 20} MiB")
        if not _is_plain_file(it.filesystem, prefix + name):
            return Picture(name, b"", "no ordinary file")
        if prefix + name in copies:
            return _picture(name, copies[prefix + name].read_bytes())
        try:
            # One by one: fsspec's `cat` of several files reads `[1]` in a name as a pattern.
            return _picture(name, patiently(lambda: it.filesystem.cat_file(prefix + name), it.place))
        except place_errors() as error:
            return Picture(name, b"", reason(error))

    names = chosen.names
    copies = _copied(it.place, it.filesystem, found, [prefix + name for name in names if size(name) <= MAX_FILE_BYTES])
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        for start in range(0, len(names), 4 * READS_AT_ONCE):
            yield from pool.map(read, names[start : start + 4 * READS_AT_ONCE])


def _in_shards(it: _Opened, names: Sequence[str], found: dict[str, dict[str, Any]]) -> Iterator[Picture]:
    prefix = _prefix(it)
    with _reported(it.place):
        copies = _copied(it.place, it.filesystem, found, [prefix + name for name in names])
        for name in names:
            place = f"{it.place.rstrip('/')}/{name}"
            with open_file(str(copies.get(prefix + name, place if found else prefix + name))) as file:
                yield from rows(place, file, it.column, shard=name)


def _picture(name: str, content: bytes) -> Picture:
    """A picture; for a kind that isn't read, with that problem."""
    suffix = PurePosixPath(name).suffix.lower()
    unreadable = suffix in UNREADABLE and not content.startswith(READ_BEGINNINGS)
    return Picture(name, b"", f"{suffix[1:].upper()} is not read") if unreadable else Picture(name, content)


def _no_pictures(place: str, chosen: Selection) -> UserError:
    passed = f" (passed over: {summary})" if (summary := chosen.summary()) else ""
    return UserError(f"images {place}: holds no pictures{passed}; at least one PNG, JPEG or WebP file is right")


def _is_plain_file(filesystem: Any, path: str) -> bool:
    """Whether a path on disk is a regular file (a pipe would block, a link may be dangling); remote paths always are."""
    return not isinstance(filesystem, LocalFileSystem) or os.path.isfile(path)


def _zip_selection(archive: zipfile.ZipFile) -> Selection:
    def beginnings(names: Sequence[str]) -> dict[str, bytes]:
        return {name: _zip_beginning(archive, name) for name in names}

    return select([entry.filename for entry in archive.infolist() if not entry.is_dir()], beginnings)


def _zip_beginning(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as file:
            return file.read(BEGINNING_BYTES)
    except (*ZIP_DAMAGE, RuntimeError) as error:  # RuntimeError: encrypted
        if is_transient(error):  # the archive couldn't be reached
            raise
        return b""


def _in_zip(place: str, file: IO[bytes]) -> Iterator[Picture]:
    with zipfile.ZipFile(file) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        chosen = _zip_selection(archive)
        if not chosen.names or chosen.kind == "tables":
            raise _no_pictures(place, chosen)
        for name in chosen.names:
            if entries[name].flag_bits & 1 or entries[name].file_size > MAX_FILE_BYTES:
                encrypted = entries[name].flag_bits & 1
                yield Picture(name, b"", "is encrypted" if encrypted else f"larger than {MAX_FILE_BYTES >> 20} MiB")
                continue
            try:
                picture = _picture(name, archive.read(entries[name]))
            except ZIP_DAMAGE as error:
                if is_transient(error):  # the archive couldn't be reached
                    raise
                picture = Picture(name, b"", f"damaged in the archive: {reason(error)}")
            yield picture


def _embedded(place: str) -> Iterator[Picture]:
    from fewshot_ray.data.digits import digit_indices, digits

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


@contextmanager
def _reported(place: str) -> Iterator[None]:
    """Turn errors while a place is opened into a UserError of one line."""
    try:
        yield
    except zipfile.BadZipFile as error:
        raise UserError(f"images {place}: is no readable zip archive ({reason(error)})") from error
    except place_errors() as error:
        if is_missing(error):
            raise UserError(f"images {place}: there is no such file or folder; give a folder, a .zip or a .parquet file") from error
        raise UserError(f"images {place}: cannot be read ({reason(error)})") from error
