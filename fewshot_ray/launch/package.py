"""Packs a run's file with its local images on a laptop, and unpacks them on a cluster."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewshot_ray.data.selection import container, local_beginning, local_selection
from fewshot_ray.errors import UserError
from fewshot_ray.search.sweep_folder import INPUTS
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.places import Place, places
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder, is_remote

MOST_BYTES = 64 * 2**20
"""Largest size of the packed images; larger sets should be copied to storage once."""
PACKED = "packed://"
"""Prefix of a packed place in the file that is sent."""
SUFFIX = r"\.[a-z0-9]+"
NAME = rf"[0-9a-f]{{16}}({SUFFIX})?"


def check_storage(document: Document, file: FileSpec) -> None:
    """Raise UserError where the file's storage isn't usable on a cluster: a relative local path."""
    if not is_remote(file.storage) and not Path(file.storage).is_absolute():
        raise document.error(
            "storage",
            f"{file.storage} is a folder of this machine; on a cluster a URL (s3://bucket/sweeps), or the absolute path of a folder "
            "that all its nodes share, is right",
        )


def pack(document: Document, folder: Path, say: Callable[[str], object] = lambda line: None) -> Document:
    """Copy local images into `folder`; returns the file with their places replaced by packed ones.

    `say` gets a line for each place with files that are passed over and so aren't sent, since a run there couldn't name them. Raises
    UserError for images too large to send, and for local models and weights.
    """
    tree: dict[str, Any] = copy.deepcopy(document.tree)
    total = 0
    for place in places(tree):
        if place.value.startswith(PACKED):
            raise document.error(place.path, f"{place.value} is what a launch makes of a folder; the folder itself is right")
        if (here := place.here) is None:
            if place.is_missing and not os.path.isabs(document.given.get(place.path, "/")):  # an absolute path may exist on the cluster
                raise document.missing(place)
            continue
        if not place.images:
            raise document.error(
                place.path,
                f"{place.value} lies on this machine; a place that the cluster can read (s3://..., or a hub id for a model) is right",
            )
        try:
            total += _pack(document, place, here, folder, MOST_BYTES - total, say)
        except OSError as error:
            raise document.error(place.path, f"{error.filename or place.value} cannot be read ({error.strerror or error})") from error
    return replace(document, tree=tree)


def _pack(document: Document, place: Place, here: Path, folder: Path, left_bytes: int, say: Callable[[str], object]) -> int:
    """Copy the pictures of one place; returns their size in bytes."""
    names, passed_over = _pictures(here)
    files = {name: here / name if name else here for name in names}
    size = sum(path.stat().st_size for path in files.values() if path.is_file())
    if size > left_bytes:
        raise document.error(
            place.path,
            f"{place.value} is too large to be sent with the run ({size / 2**20:.0f} MB; {MOST_BYTES >> 20} MB in all are sent); "
            "copied to storage once, and named by its URL, is right",
        )
    if not files:
        passed = f" (passed over: {passed_over})" if passed_over else ""
        raise document.error(
            place.path, f"{place.value} holds no PNG, JPEG or WebP file, zip or Parquet{passed}; a folder of images is right"
        )
    if wrong := next((name for name, path in files.items() if not path.is_file()), None):
        raise document.error(place.path, f"{place.value}: {wrong} is no ordinary file; whole PNG, JPEG or WebP files are right")
    if passed_over:
        say(f"{place.path}: passed over: {passed_over}")
    suffix = here.suffix.lower() if "" in files and re.fullmatch(SUFFIX, here.suffix.lower()) else ""
    name = f"{_hash(files)}{suffix}"
    for relative, path in files.items():
        target = folder / name / relative if relative else folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    place.put(PACKED + name)
    return size


def _pictures(here: Path) -> tuple[Sequence[str], str]:
    """The files of a place that a run would read, by path within it ("": the place itself), and a summary of those it passes over."""
    if here.is_dir():
        selection = local_selection(str(here))
        return selection.names, selection.summary()
    return ([""] if container(here.name, local_beginning(str(here))) else []), ""


def _hash(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(name.encode(errors="surrogateescape") + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def unpack(document: Document, file: FileSpec, packed: Path, *, stays: bool = False) -> tuple[Document, list[Path]]:
    """Replace packed places; returns the file, and the paths of the images as they arrived.

    The new places are in the sweep's folder, where `store` puts the images and all nodes and a later resume can read them; with `stays`,
    the paths where they arrived.
    """
    inputs = Folder(file.storage) / file.name / INPUTS
    tree: dict[str, Any] = copy.deepcopy(document.tree)
    sources = []
    for place in places(tree):
        if not place.value.startswith(PACKED):
            continue
        name = place.bare.removeprefix(PACKED)
        source = packed.resolve() / name
        if not re.fullmatch(NAME, name) or not source.exists():
            raise UserError(f"{place.path}: what was packed for it hasn't arrived; launch it again")
        sources.append(source)
        place.put(str(source) if stays else (inputs / name).url)
    return replace(document, tree=tree), sources


def store(sources: list[Path], file: FileSpec) -> None:
    """Copy the images that arrived into the sweep's folder, except those that are there already."""
    inputs = Folder(file.storage) / file.name / INPUTS
    for source in sources:
        for path in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
            relative = path.relative_to(source.parent).as_posix()
            if not inputs.exists(relative):
                inputs.write_bytes(relative, path.read_bytes())
