"""Conditional writes: a file is written only if it is as it was last read, so that of several writers at once exactly one succeeds.

On disk this is done under an exclusive lock (flock, also on NFS); on S3 the store compares (If-None-Match, If-Match). Some S3-compatible
stores ignore or refuse these headers, and other stores have other ones: there a write is unconditional, and `conditions_hold` is False.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from fsspec.asyn import sync

from fewshot_ray.errors import UserError
from fewshot_ray.patience import answer_of, is_transient, place_errors
from fewshot_ray.storage import SILENCE_SEC, Folder, is_s3, open_place

LOCK_SEC = 30.0
"""Time to wait for a lock, which is held for a read and a write."""
LOCK_POLL_SEC = 0.02
NO_SUCH_ETAG = '"0123456789abcdef0123456789abcdef"'
UNKNOWN_CONDITIONS = {"NotImplemented", "InvalidArgument", "InvalidRequest", "MethodNotAllowed", "NotSupported"}
"""S3's error codes for a request with a header that the store doesn't support."""


@dataclass(frozen=True)
class Seen:
    """A file's state as it was read or written."""

    content: bytes | None
    """None where the file didn't exist."""
    etag: str | None = None
    """The object store's ETag."""


class OutdatedError(Exception):
    """The file isn't as it was seen: another process has written or removed it."""


def look(folder: Folder, name: str) -> Seen:
    """The file's current state."""
    try:
        if is_s3(folder.url):
            return folder.perform(f"read {name}", lambda: _get(f"{folder.url}/{name}"), missing=True)
        return Seen(folder.read_bytes(name))
    except FileNotFoundError:
        return Seen(None)


def write_where(folder: Folder, name: str, content: bytes, seen: Seen) -> Seen:
    """Write the file; returns its new state. Raises OutdatedError where it isn't as seen and the place can compare."""
    if folder.local is not None:
        return _write_on_disk(folder, name, content, seen)
    if is_s3(folder.url):
        return _write_on_s3(folder, name, content, seen)
    folder.write_bytes(name, content)
    return Seen(content)


def remove_where(folder: Folder, name: str, seen: Seen) -> None:
    """Delete the file if it is as seen; on an object store, which compares only at writes, it is read first."""
    with _locked(folder, name):
        if look(folder, name).content == seen.content:
            folder.remove(name)


def conditions_hold(folder: Folder, name: str, seen: Seen) -> bool:
    """Whether of two writers at once only one succeeds at this place. `seen`: the file as this process just wrote it."""
    if folder.local is not None:
        with _locked(folder, name) as locked:
            return locked
    if not is_s3(folder.url) or seen.content is None or seen.etag is None:
        return False
    for impossible in (Seen(None), Seen(b"", NO_SUCH_ETAG)):
        try:
            _put(folder, name, seen.content, impossible)
        except OutdatedError:
            continue
        except _UnknownConditionError:
            return False
        return False
    return True


class _UnknownConditionError(Exception):
    """The store doesn't support the header."""


def _write_on_disk(folder: Folder, name: str, content: bytes, seen: Seen) -> Seen:
    with _locked(folder, name):
        if look(folder, name).content != seen.content:
            raise OutdatedError
        if seen.content is not None:
            folder.write_bytes(name, content)
            return Seen(content)
        try:
            folder.perform(f"write {name}", lambda: _create(Path(f"{folder.url}/{name}"), content), exists=True)
        except FileExistsError as error:
            raise OutdatedError from error
    return Seen(content)


def _write_on_s3(folder: Folder, name: str, content: bytes, seen: Seen) -> Seen:
    try:
        return _put(folder, name, content, seen)
    except OutdatedError:
        now = look(folder, name)
        if now.content != content:  # otherwise an earlier attempt of this write succeeded and its answer was lost
            raise
        return now
    except _UnknownConditionError:
        folder.write_bytes(name, content)
        return Seen(content)


def _put(folder: Folder, name: str, content: bytes, seen: Seen) -> Seen:
    condition = {"IfNoneMatch": "*"} if seen.content is None else {"IfMatch": seen.etag} if seen.etag else {}

    def attempt() -> dict[str, Any]:
        filesystem, path = open_place(f"{folder.url}/{name}")
        bucket, key, _ = filesystem.split_path(path)
        try:
            answer: dict[str, Any] = filesystem.call_s3("put_object", Bucket=bucket, Key=key, Body=content, **condition)
        except place_errors() as error:
            said = answer_of(error)
            if said is None or is_transient(error):
                raise
            if said.status == 412 or said.code == "PreconditionFailed" or (said.status == 404 and seen.content is not None):
                raise OutdatedError from error
            if said.status == 501 or said.code in UNKNOWN_CONDITIONS:
                raise _UnknownConditionError from error
            raise
        return answer

    return Seen(content, folder.perform(f"write {name}", attempt).get("ETag"))


def _get(url: str) -> Seen:
    """An object's content and ETag, from one request."""
    filesystem, path = open_place(url)
    bucket, key, _ = filesystem.split_path(path)

    async def get() -> Seen:
        answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            return Seen(await body.read(), answer.get("ETag"))

    seen: Seen = sync(filesystem.loop, get, timeout=SILENCE_SEC)
    return seen


@contextmanager
def _locked(folder: Folder, name: str) -> Iterator[bool]:
    """Context that holds an exclusive lock on disk; yields False where the file system has no locks, and for places not on disk.

    The lock file is hidden and never removed: a removed one could be locked twice.
    """
    if folder.local is None:
        yield False
        return
    path = folder.local / f".{name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115
    except OSError:  # the error is reported where the file itself is written
        yield False
        return
    with file:
        yield _lock(file.fileno(), folder, name)


def _lock(descriptor: int, folder: Folder, name: str) -> bool:
    """Lock the file; returns False where the file system has no locks. Raises UserError where another process keeps it locked."""
    until_sec = time.monotonic() + LOCK_SEC
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return False
        else:
            return True
        if time.monotonic() > until_sec:
            raise UserError(f"{folder.url}: another process keeps {name} locked; one that has ended, or goes on, would be right")
        time.sleep(LOCK_POLL_SEC)


def _create(path: Path, content: bytes) -> None:
    """Create a file atomically, also without locks and on NFS. Raises FileExistsError where it exists."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            with open(path, "xb") as file:
                file.write(content)
    finally:
        temporary.unlink(missing_ok=True)
