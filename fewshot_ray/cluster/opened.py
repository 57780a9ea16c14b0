"""A sweep's folder and the spec it holds. Imports no Ray, so that what is wrong is said at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.report.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document, parse_document, to_yaml
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import absolute_places, check_document

SPEC = "spec.yaml"


@dataclass(frozen=True)
class Opened:
    """A sweep's folder with the document it holds."""

    document: Document
    file: FileSpec
    folder: SweepFolder


def open_sweep(document: Document) -> Opened:
    """The folder of a run's file, made where it isn't there yet. Raises UserError, also where it holds another spec."""
    expanded, file = check_document(absolute_places(document))
    folder = SweepFolder(Folder(file.storage) / file.name)
    text = to_yaml(expanded.tree)
    if not folder.folder.exists(SPEC):
        if [name for name in folder.folder.names() if not name.startswith(".")]:  # such are what a killed write leaves
            raise UserError(f"storage: {folder.folder.url} holds something else (no {SPEC}); another name or storage would be right")
        folder.folder.write_text(SPEC, text)
        return Opened(expanded, file, folder)
    found = existing_sweep(folder.folder)
    differences = differing_paths(found.document.tree, expanded.tree)
    if differences:
        raise UserError(
            f"{document.name}: {folder.folder.url} holds another spec "
            f"(it differs in {', '.join(differences[:3])}); another name would be right"
        )
    return found


def existing_sweep(folder: Folder) -> Opened:
    """A sweep by its folder. Raises UserError where it is none."""
    if not folder.exists(SPEC):
        raise UserError(f"{folder.url}: no sweep there ({SPEC} is missing); the folder that `fewshot-ray run` printed would be right")
    document = parse_document(folder.read_text(SPEC), f"{folder.url}/{SPEC}")
    expanded, file = check_document(document)
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
