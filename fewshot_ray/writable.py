"""Checks that a place supports every operation of a sweep."""

from __future__ import annotations

from contextlib import suppress
from uuid import uuid4

from fewshot_ray.errors import UserError
from fewshot_ray.remedies import other_checksums
from fewshot_ray.storage import Folder, is_s3


def check_writable(folder: Folder) -> None:
    """Write, replace, read, list and delete small files as a sweep does; removes them and the folders made for them.

    Raises UserError with the operation that the place refuses and, where there is one, the setting that helps.
    """
    tried = folder / f".{uuid4().hex}"
    places = (tried.local, *tried.local.parents) if tried.local is not None else ()
    missing = [place for place in places if not Folder(place).exists()]
    try:
        tried.write_bytes("file", b"")
        try:
            _use(tried)
        except UserError:
            with suppress(UserError):  # the first error is raised
                tried.remove()
            raise
        tried.remove()
    finally:
        for place in missing:
            # A folder that has got content meanwhile stays.
            with suppress(OSError):
                place.rmdir()


def _use(folder: Folder) -> None:
    for name in ("file", "below/again"):
        for content in (b"once", b"again"):
            folder.write_bytes(name, content)
            if folder.read_bytes(name) != content:
                right = f"{other_checksums()}, or another store," if is_s3(folder.url) else "another place"
                raise UserError(f"storage {folder.url}: what is read is not what was written; {right} is right")
    if folder.names() != ["below", "file"] or not folder.exists("file") or folder.exists("nothing"):
        raise UserError(f"storage {folder.url}: what was written isn't listed; a place that shows a file as soon as it is there is right")
    folder.remove("file")
