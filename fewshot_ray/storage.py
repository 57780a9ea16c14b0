"""Folders on local disk, NFS or any fsspec URL behind one small interface, which retries transient errors."""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fewshot_ray.errors import UserError
from fewshot_ray.patience import (
    Result,
    answer_of,
    client_mistakes,
    is_full,
    is_missing,
    is_mute,
    is_transient,
    patiently,
    place_errors,
    reason,
)
from fewshot_ray.remedies import checksums, remedy

CONNECT_SEC = 5.0
SILENCE_SEC = 30.0
"""Time without an answer after which a request has failed."""
SLOWEST_BYTES_PER_SEC = 250_000
READ_BYTES = 2**20
PART_BYTES = 50 * 2**20
"""Part size of s3fs's multipart uploads, which it uses for twice this size or more; each part is retried by itself."""
MOST_PUT_BYTES = 5 * 2**30
"""S3's limit for an upload in one request."""
DELETES_AT_ONCE = 8


def is_remote(url: str) -> bool:
    """Whether `url` is a remote place (`s3://...`, `memory://...`), not on the local disk."""
    return "://" in url and not url.startswith(("file://", "local://"))


def is_s3(url: str) -> bool:
    """Whether the URL is one of s3fs's."""
    return url.startswith(("s3://", "s3a://"))


def open_place(url: str, *, attempts: int = 1) -> tuple[Any, str]:
    """The fsspec filesystem of `url`, which doesn't cache listings, and the path in it. Raises one of `place_errors`.

    `attempts`: requests in all, each with a time limit. By default S3's client and s3fs would each retry five times, with up to a minute
    and a half without an answer, but `patiently` retries here. fsspec's own settings for the client take precedence.
    """
    if not is_remote(url):  # `::`, which fsspec reads as a chain of places, is part of a local name
        return LocalFileSystem(), LocalFileSystem._strip_protocol(url)
    if not is_s3(url):
        with client_mistakes():
            filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        return filesystem, path
    settings: dict[str, Any] = {"connect_timeout": CONNECT_SEC, "read_timeout": SILENCE_SEC}
    settings |= {"retries": {"mode": "standard", "total_max_attempts": attempts}}
    # Not botocore's "when_supported": few other stores support the headers, and some send the whole object's checksum for a range.
    # Without them the signature of an upload has its SHA-256, which the store compares.
    settings |= {"request_checksum_calculation": checksums(), "response_checksum_validation": "when_required"}
    for protocol in ("s3", "s3a"):
        settings |= fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    filesystem, path = fsspec.core.url_to_fs(url, use_listings_cache=False, config_kwargs=settings)
    filesystem.retries = 1
    return filesystem, path


def open_file(url: str) -> IO[bytes]:
    """A file to read and seek in; every read retries transient errors. Raises what `patiently` does."""
    filesystem, path = open_place(url)
    if isinstance(filesystem, LocalFileSystem):
        return open(path, "rb")
    size = patiently(lambda: int(filesystem.info(path)["size"]), path)
    return io.BufferedReader(_Ranges(filesystem, path, size), READ_BYTES)


class _Ranges(io.RawIOBase):
    """A remote file read in single range requests, since fsspec's own files don't survive an error."""

    def __init__(self, filesystem: Any, path: str, size: int) -> None:
        self.filesystem, self.path, self.size, self.position = filesystem, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence])
        return self.position

    def readinto(self, buffer: Any) -> int:
        start, end = self.position, min(self.position + len(buffer), self.size)
        if start >= end:
            return 0
        content = patiently(lambda: self.filesystem.cat_file(self.path, start=start, end=end), self.path)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


class Folder:
    """A folder on local disk or at an fsspec URL; it need not exist until something is written.

    Writes are atomic: by a rename on disk, by a single upload on an object store. Every method retries transient errors for as long as
    `set_patience` says, and raises UserError, in one line, where the place can't be reached (no credentials, no such bucket, no permission,
    no answer).
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
        """The local path; None for a remote URL."""
        return None if is_remote(self.url) else Path(self.url)

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or the file or folder `name` in it, exists."""
        path = self._path(name)
        look = _exists if self.local is not None else _exists_remotely
        return self.perform(f"look for {name}" if name else "look into it", lambda: look(path))

    def names(self) -> list[str]:
        """Names of the direct children, sorted; empty where the folder doesn't exist."""
        names = _names if self.local is not None else _names_remotely
        return self.perform("list it", lambda: names(self.url))

    def read_bytes(self, name: str) -> bytes:
        """The file's content. Raises FileNotFoundError where the file, or the whole place, is missing."""
        path = self._path(name)
        read = _read if self.local is not None else _read_remotely
        return self.perform(f"read {name}", lambda: read(path), missing=True)

    def read_text(self, name: str) -> str:
        """The file's content as UTF-8. Raises FileNotFoundError."""
        return self.read_bytes(name).decode()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file atomically, creating the folders above it."""
        path = self._path(name)
        if self.local is None:
            self.perform(f"write {name}", lambda: _write_remotely(path, content))
            return
        # One for all attempts, so that none is left behind. Not tempfile: its files are for their owner alone, and a folder may be shared.
        temporary = Path(path).with_name(f".{Path(path).name}.{uuid4().hex}")
        self.perform(f"write {name}", lambda: _replace_atomically(Path(path), temporary, content))

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file atomically, creating the folders above it."""
        self.write_bytes(name, text.encode())

    def remove(self, name: str = "") -> None:
        """Delete a file, or a folder with its contents; does nothing where it doesn't exist."""
        path = self._path(name)
        remove = _remove if self.local is not None else _remove_remotely
        self.perform(f"remove {name or 'it'}", lambda: remove(path))

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def perform(self, action: str, attempt: Callable[[], Result], *, missing: bool = False, exists: bool = False) -> Result:
        """`patiently`, with errors as a UserError of one line; with `missing` or `exists` such files' errors are left to the caller."""
        try:
            return patiently(attempt, f"storage {self.url}")
        except place_errors() as error:
            if (missing and is_missing(error)) or (exists and isinstance(error, FileExistsError)):
                raise
            raise _refusal(self.url, action, _told(self.url, error)) from error


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context for code that writes a local file without a Folder; turns the disk's errors into a UserError."""
    try:
        yield
    except OSError as error:
        raise _refusal(os.fspath(path), "be written", error) from error


def _refusal(place: str, action: str, error: Exception) -> UserError:
    return UserError(f"storage {place}: cannot {action} ({reason(error)}); {remedy(error)}")


def _told(url: str, error: Exception) -> Exception:
    """The error of a listing, which has a reason where S3's answer to a HEAD had none."""
    if not is_s3(url) or not is_mute(error):
        return error
    try:
        filesystem, path = open_place(url)
        bucket, key, _ = filesystem.split_path(path)
        filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except place_errors() as told:
        return told
    return error


def _local_path(text: str) -> str:
    return os.path.abspath(os.path.expanduser(text.removeprefix("file://").removeprefix("local://")))


def _exists(path: str) -> bool:
    # Not os.path.exists, which returns False for a failing disk.
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _exists_remotely(url: str) -> bool:
    # Not `exists`: s3fs's is False for an unreachable bucket.
    filesystem, path = open_place(url)
    try:
        filesystem.info(path)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        return False
    return True


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _names_remotely(url: str) -> list[str]:
    filesystem, path = open_place(url)
    try:
        children = filesystem.ls(path, detail=False, refresh=True)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        return []
    # An object store may list the folder itself among its children, and a file as its own child.
    own = path.strip("/")
    return sorted({child.rstrip("/").rsplit("/", 1)[-1] for child in children if child.strip("/") != own})


def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _read_remotely(url: str) -> bytes:
    filesystem, path = open_place(url)
    content: bytes = filesystem.cat_file(path)
    return content


def _replace_atomically(path: Path, temporary: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # Where even that fails, the next attempt writes over it.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def _write_remotely(url: str, content: bytes) -> None:
    try:
        _put(url, content, PART_BYTES)
    except place_errors() as error:
        if not 2 * PART_BYTES <= len(content) < MOST_PUT_BYTES or answer_of(error) is None or is_transient(error) or is_full(error):
            raise
        _put(url, content, MOST_PUT_BYTES)  # the store has no multipart uploads


def _put(url: str, content: bytes, part_bytes: int) -> None:
    filesystem, path = open_place(url, attempts=5 if len(content) >= 2 * part_bytes else 1)
    options: dict[str, float] = {"chunksize": part_bytes} if is_s3(url) else {}
    if filesystem.async_impl:
        # A PUT waits for "100 Continue", for which aiohttp has no time limit.
        options["timeout"] = SILENCE_SEC + len(content) / SLOWEST_BYTES_PER_SEC
    filesystem.pipe_file(path, content, **options)


def _remove(path: str) -> None:
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(path):
            raise OSError(errno.EBUSY, "others are removing there too") from None


def _remove_remotely(url: str) -> None:
    filesystem, path = open_place(url)
    try:
        if filesystem.info(path)["type"] == "file":
            filesystem.rm_file(path)
            return
        if not is_s3(url):
            filesystem.rm(path, recursive=True)
            return
        # Not `rm`, which deletes many in one request: not all stores support that.
        with ThreadPoolExecutor(DELETES_AT_ONCE) as pool:
            list(pool.map(filesystem.rm_file, filesystem.find(path)))
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
