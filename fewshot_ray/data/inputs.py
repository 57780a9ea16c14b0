"""The files of a place that a run reads: their state by a listing (size, time, ETag), and their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fewshot_ray.copies import local_copy
from fewshot_ray.patience import patiently
from fewshot_ray.storage import is_remote, open_place

READS_AT_ONCE = 4
MODIFIED = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Keys of fsspec's listings for the time of the last change; `created` is that of the in-memory file system."""
ETAGS = ("ETag", "etag")


@dataclass(frozen=True)
class FileState:
    """A file's state by a listing, without reading it."""

    bytes: int
    modified: str | None = None
    """ISO 8601, or as the store writes it; None where the listing has no time."""
    etag: str | None = None

    def is_surely(self, other: FileState) -> bool:
        """Whether the listings prove the same content; False means only that they don't."""
        if self.bytes != other.bytes:
            return False
        if self.etag and other.etag:
            return self.etag == other.etag
        return self.modified is not None and self.modified == other.modified


@dataclass(frozen=True)
class Listed:
    """The files of a place that a run would read."""

    place: str
    files: Mapping[str, FileState]
    """State by path within the place; the path is "" for a place that is a single file."""
    locate: Callable[[], Mapping[str, Path]]
    """Local paths by the same names; remote files are fetched, and those that can't be fetched are left out."""

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """sha256 (hex) of the named files' bytes; unreadable ones are left out."""
        wanted = list(names)
        paths = self.locate() if wanted else {}
        found = [(name, paths[name]) for name in wanted if name in paths and paths[name].is_file()]
        with ThreadPoolExecutor(READS_AT_ONCE) as pool:
            digests = pool.map(lambda pair: _sha256(pair[1]), found)
            return {name: digest for (name, _), digest in zip(found, digests, strict=True) if digest is not None}


def file_state(info: Mapping[str, Any]) -> FileState:
    """The state in one entry of an fsspec listing."""
    modified = next((_time(info[key]) for key in MODIFIED if info.get(key) is not None), None)
    etag = next((str(info[key]).strip('"') for key in ETAGS if info.get(key)), None)
    return FileState(int(info.get("size") or 0), modified, etag)


def local_state(path: Path) -> FileState:
    """The state of a file on disk. Raises OSError."""
    status = os.stat(path)
    return FileState(status.st_size, _time(status.st_mtime))


def listed_file(place: str) -> Listed:
    """A single file, on disk or at a URL, as a listing. Raises what `patiently` does."""
    if not is_remote(place):
        path = Path(os.path.expanduser(place.removeprefix("file://").removeprefix("local://")))
        return Listed(place, {"": local_state(path)}, lambda: {"": path})
    filesystem, remote = open_place(place)
    info = patiently(lambda: filesystem.info(remote), place)
    return Listed(place, {"": file_state(info)}, lambda: {"": local_copy(place, filesystem, remote)})


def listed_folder(place: str, folder: Path, names: Iterable[str]) -> Listed:
    """The named files of a folder on disk, as a listing. Raises OSError."""
    paths = {name: folder / name for name in sorted(names)}
    return Listed(place, {name: local_state(path) for name, path in paths.items() if path.is_file()}, lambda: paths)


def _sha256(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _time(value: Any) -> str:
    if isinstance(value, (int, float)):
        value = datetime.fromtimestamp(value, UTC)
    return value.isoformat() if isinstance(value, datetime) else str(value)
