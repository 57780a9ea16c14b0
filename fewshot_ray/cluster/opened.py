"""A sweep's folder and the spec it holds. Imports no Ray, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.report.sweep_folder import SPEC, SweepFolder, read_spec
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import absolute_places, check_document

BEFORE_TRIALS = {SPEC, "cache"}
"""What a run leaves that ended before its first trial (too many GPUs asked for, say): the file that is put right then takes its place."""


@dataclass(frozen=True)
class Opened:
    """A sweep's folder with the document it holds."""

    document: Document
    file: FileSpec
    folder: SweepFolder


def planned_sweep(document: Document) -> Opened:
    """The sweep of a run's file, without writing anything. Raises UserError where its folder holds something else."""
    expanded, file = check_document(absolute_places(document))
    folder = SweepFolder(Folder(file.storage) / file.name)
    # Hidden files are what a killed write leaves.
    names = {name for name in folder.folder.names() if not name.startswith(".")}
    if SPEC not in names:
        if names:
            raise UserError(f"storage: {folder.folder.url} holds something else (no {SPEC}); another name or storage would be right")
        return Opened(expanded, file, folder)
    if names <= BEFORE_TRIALS:
        return Opened(expanded, file, folder)
    found = existing_sweep(folder.folder)
    differences = differing_paths(found.document.tree, expanded.tree)
    if differences:
        raise UserError(
            f"{document.name}: {folder.folder.url} holds another spec "
            f"(it differs in {', '.join(differences[:3])}); another name would be right"
        )
    return found


def open_sweep(document: Document) -> Opened:
    """The folder of a run's file, made where it isn't there yet. Raises UserError, also where it holds another spec."""
    opened = planned_sweep(document)
    text = to_yaml(opened.document.tree)
    if not opened.folder.folder.exists(SPEC) or opened.folder.folder.read_text(SPEC) != text:
        opened.folder.folder.write_text(SPEC, text)
    return opened


def existing_sweep(folder: Folder) -> Opened:
    """A sweep by its folder. Raises UserError where it is none."""
    if not folder.exists(SPEC):
        raise UserError(f"{folder.url}: no sweep there ({SPEC} is missing); the folder that `fewshot-ray run` printed would be right")
    expanded, file = check_document(read_spec(folder))
    return Opened(expanded, file, SweepFolder(folder))


def differing_paths(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted paths at which two trees differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [
            difference
            for key in [*a, *(key for key in b if key not in a)]
            for difference in differing_paths(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if a == b else [path]
