"""Folders on local disk or at any fsspec URL, behind one small interface."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import fsspec

from fewshot_ray.errors import UserError


def is_remote(url: str) -> bool:
    """Whether `url` names a place that is not this machine's disk (`s3://...`, `memory://...`)."""
    return "://" in url and not url.startswith(("file://", "local://"))


class Folder:
    """A folder on local disk or at an fsspec URL; it need not exist until something is written.

    A write shows under its final name whole or not at all: locally through a rename,
    on an object store because an upload is one.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        text = os.fspath(url)
        self.url = text.rstrip("/") if is_remote(text) else os.path.abspath(text.removeprefix("file://"))

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
        filesystem, path = self._target(name)
        return bool(filesystem.exists(path))

    def names(self) -> list[str]:
        """The direct children's names, sorted; empty where the folder does not exist."""
        filesystem, path = self._target("")
        if not filesystem.isdir(path):
            return []
        children = filesystem.ls(path, detail=False, **({} if self.local else {"refresh": True}))
        return sorted({child.rstrip("/").rsplit("/", 1)[-1] for child in children} - {self.name, ""})

    def read_bytes(self, name: str) -> bytes:
        """The file's content. Raises FileNotFoundError."""
        filesystem, path = self._target(name)
        content: bytes = filesystem.cat_file(path)
        return content

    def read_text(self, name: str) -> str:
        """The file's content as UTF-8. Raises FileNotFoundError."""
        return self.read_bytes(name).decode()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole, with the folders above it. Raises UserError where the place cannot be written."""
        try:
            if self.local is not None:
                _replace_atomically(self.local / name, content)
            else:
                filesystem, path = self._target(name)
                filesystem.pipe_file(path, content)
        except OSError as error:
            raise UserError(
                f"storage {self.url}: cannot write {name} ({error.strerror or error}); give a place you may write to"
            ) from error

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file whole; see `write_bytes`."""
        self.write_bytes(name, text.encode())

    def remove(self, name: str = "") -> None:
        """Delete a file or a folder with all below it; nothing happens where it is not there."""
        filesystem, path = self._target(name)
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)

    def _target(self, name: str) -> tuple[Any, str]:
        url = f"{self.url}/{name}" if name else self.url
        if self.local is not None:
            return fsspec.filesystem("file"), url
        filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return filesystem, path


def _replace_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
