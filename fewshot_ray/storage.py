"""Folders on local disk or at any fsspec URL, behind one small interface."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec

from fewshot_ray.errors import UserError


def is_remote(url: str) -> bool:
    """Whether `url` names a place that is not this machine's disk (`s3://...`, `memory://...`)."""
    return "://" in url and not url.startswith(("file://", "local://"))


def place_errors() -> tuple[type[Exception], ...]:
    """What opening, reading and writing at a place raise: the disk, unknown protocols and damaged files (ValueError), missing clients.

    The clients beneath fsspec also raise errors of their own (no credentials, no route); only a client that was loaded can.
    """
    errors: list[type[Exception]] = [OSError, ValueError, ImportError, NotImplementedError]
    for module, names in {"botocore.exceptions": ("BotoCoreError", "ClientError"), "aiohttp": ("ClientError",)}.items():
        if module in sys.modules:
            errors += [getattr(sys.modules[module], name) for name in names]
    return tuple(errors)


def reason(error: Exception) -> str:
    """What one of `place_errors` says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


class Folder:
    """A folder on local disk or at an fsspec URL; it need not exist until something is written.

    A write shows under its final name whole or not at all: locally through a rename,
    on an object store because an upload is one. Every method raises UserError, in one line, where the place cannot be reached
    (no credentials, no such bucket, no permission).
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        self.url = text.rstrip("/") if is_remote(text) else _local_path(text)

    def __truediv__(self, name: str) -> Folder:
        return Folder(f"{self.url}/{name}")

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def __str__(self) -> str:
        return self.url

    @property
    def local(self) -> Path | None:
        """The path on this machine's disk, or None at a remote URL."""
        return None if is_remote(self.url) else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file or folder called `name` in it, is there."""
        with self._reported(f"look for {name}" if name else "look into it"):
            filesystem, path = self._target(name)
            return bool(filesystem.exists(path))

    def names(self) -> list[str]:
        """The direct children's names, sorted; empty where the folder does not exist."""
        with self._reported("list it"):
            filesystem, path = self._target("")
            if not filesystem.isdir(path):
                return []
            children = filesystem.ls(path, detail=False, **({} if self.local else {"refresh": True}))
        # An object store may list the folder itself among its children.
        own = path.strip("/")
        return sorted({child.rstrip("/").rsplit("/", 1)[-1] for child in children if child.strip("/") != own})

    def read_bytes(self, name: str) -> bytes:
        """The file's content. Raises FileNotFoundError where the file, or the whole place, is missing."""
        with self._reported(f"read {name}", missing=True):
            filesystem, path = self._target(name)
            content: bytes = filesystem.cat_file(path)
            return content

    def read_text(self, name: str) -> str:
        """The file's content as UTF-8. Raises FileNotFoundError."""
        return self.read_bytes(name).decode()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole, with the folders above it."""
        with self._reported(f"write {name}"):
            if self.local is not None:
                _replace_atomically(self.local / name, content)
            else:
                filesystem, path = self._target(name)
                filesystem.pipe_file(path, content)

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file whole; see `write_bytes`."""
        self.write_bytes(name, text.encode())

    def remove(self, name: str = "") -> None:
        """Delete a file or a folder with all below it; nothing happens where it is not there."""
        with self._reported(f"remove {name or 'it'}"):
            filesystem, path = self._target(name)
            if filesystem.exists(path):
                filesystem.rm(path, recursive=True)

    def check_writable(self) -> None:
        """Write and remove a small file, and the folders made for it. Raises UserError."""
        missing = [place for place in (self.local, *self.local.parents) if not place.exists()] if self.local else []
        name = f".{uuid4().hex}"
        try:
            self.write_bytes(name, b"")
            self.remove(name)
        finally:
            for place in missing:
                if place.exists() and not any(place.iterdir()):
                    place.rmdir()

    def _target(self, name: str) -> tuple[Any, str]:
        url = f"{self.url}/{name}" if name else self.url
        if self.local is not None:
            return fsspec.filesystem("file"), url
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return filesystem, path

    @contextmanager
    def _reported(self, action: str, *, missing: bool = False) -> Iterator[None]:
        """Turn what goes wrong into one line; a missing file is left to the caller where `missing`."""
        try:
            yield
        except place_errors() as error:
            if missing and isinstance(error, FileNotFoundError):
                raise
            raise UserError(f"storage {self.url}: cannot {action} ({reason(error)}); a place you may read and write is right") from error


def _local_path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://").removeprefix("local://")))


def _replace_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are for their owner alone, and a sweep's folder may be shared.
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
