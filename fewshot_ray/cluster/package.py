"""What a laptop sends to a cluster with a run, and what the cluster makes of it: the file, and the images that lie beside it."""

from __future__ import annotations

import copy
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.report.sweep_folder import INPUTS
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.places import places
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder, is_remote

MOST_BYTES = 64 * 2**20
"""Of images; more belongs on storage, once, not into every launch."""
PICTURES = (".jpeg", ".jpg", ".png", ".webp", ".zip", ".parquet")
PACKED = "packed://"
"""How a packed place begins in the file that is sent."""


def check_storage(document: Document, file: FileSpec) -> None:
    """Raise UserError where the file's storage can't be that of a cluster."""
    if not is_remote(file.storage) and not Path(file.storage).is_absolute():
        raise document.error(
            "storage",
            f"{file.storage} is a folder of this machine; on a cluster a URL (s3://bucket/sweeps), or the absolute path of a folder "
            "that all its nodes share, is right",
        )


def pack(document: Document, folder: Path) -> Document:
    """Copy the images that lie on this machine into `folder`, and return the file as the cluster is to read it.

    Raises UserError for what is too large to send with every launch, and for models and weights, which belong on storage.
    """
    tree: dict[str, Any] = copy.deepcopy(document.tree)
    total = 0
    for place in places(tree):
        here = place.here
        if here is None:
            continue
        if not place.images:
            raise document.error(
                place.path,
                f"{place.value} lies on this machine; where the cluster can read it (s3://..., or a hub id for a model) is right",
            )
        files = list(_pictures(here))
        total += sum(path.stat().st_size for path in files)
        if total > MOST_BYTES:
            raise document.error(
                place.path,
                f"{place.value} is too large to be sent with the run ({total / 2**20:.0f} MB, at most {MOST_BYTES >> 20}); "
                "copied to storage once, and named by its URL, is right",
            )
        if not files:
            raise document.error(place.path, f"{place.value} holds no PNG, JPEG or WebP file, zip or Parquet; a folder of images is right")
        name = f"{_hash(here, files)}{here.suffix.lower() if here.is_file() else ''}"
        for path in files:
            target = folder / name / path.relative_to(here) if here.is_dir() else folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        place.put(PACKED + name)
    return replace(document, tree=tree)


def _pictures(here: Path) -> Iterator[Path]:
    """Nothing else of a folder leaves the machine."""
    found = [here] if here.is_file() else sorted(here.rglob("*"))
    for path in found:
        hidden = here.is_dir() and any(part.startswith(".") for part in path.relative_to(here).parts)
        if path.is_file() and path.suffix.lower() in PICTURES and not hidden:
            yield path


def _hash(here: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(here).as_posix() if here.is_dir() else ""
        digest.update(name.encode(errors="surrogateescape") + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def unpack(document: Document, file: FileSpec, packed: Path, *, store: bool = True) -> Document:
    """Put what was packed where all nodes, and a later resume, can read it, the sweep's own folder, and name it there.

    Without `store` it stays where it has arrived, and is named there.
    """
    inputs = Folder(file.storage) / file.name / INPUTS
    tree: dict[str, Any] = copy.deepcopy(document.tree)
    for place in places(tree):
        if not place.value.startswith(PACKED):
            continue
        name = place.value.removeprefix(PACKED)
        source = packed.resolve() / name
        if not source.exists():
            raise UserError(f"{place.path}: what was packed for it hasn't arrived; launch it again")
        if store:
            _store(source, inputs)
        place.put((inputs / name).url if store else str(source))
    return replace(document, tree=tree)


def _store(source: Path, inputs: Folder) -> None:
    for path in [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file()):
        relative = path.relative_to(source.parent).as_posix()
        if not inputs.exists(relative):
            inputs.write_bytes(relative, path.read_bytes())
