"""The files that a run's results depend on, by the field of the run's file that names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from fewshot_ray.data.inputs import Listed, listed_file, listed_folder
from fewshot_ray.data.places import picture_files
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors.transformer import FILES
from fewshot_ray.models.gan_checkpoint import is_checkpoint
from fewshot_ray.models.source import source_files
from fewshot_ray.patience import place_errors, reason
from fewshot_ray.spec.places import places
from fewshot_ray.storage import is_remote

SOURCE = "source."
SOURCE_IMAGES = "source.images"


@dataclass(frozen=True)
class Input:
    """A field that names files to read."""

    field: str
    """The field's dotted path."""
    place: str
    look: Callable[[], Listed | None]
    """Lists the files; None for data embedded in this package and for an encoder's hub id. Raises UserError."""

    @property
    def is_source(self) -> bool:
        """Whether it is the model that training starts from."""
        return self.field.startswith(SOURCE) and self.field != SOURCE_IMAGES


def inputs_of(tree: dict[str, Any]) -> Iterator[Input]:
    """The inputs in a file's tree; images that the source model generates aren't among them, nor are earlier sweeps."""
    source = tree.get("source")
    revision = source.get("revision") if isinstance(source, dict) else None
    for place in places(tree):
        path = place.value
        if place.is_sweep:
            continue
        if place.images:
            yield Input(place.path, path, partial(picture_files, path))
        elif place.path == "source.model" or (place.path.startswith("source.gan.") and not is_checkpoint(path)):
            yield Input(place.path, path, partial(source_files, path, revision))
        else:
            yield Input(place.path, path, partial(_weights, place.path, path))


def _weights(field: str, place: str) -> Listed | None:
    """A file of weights, or the files read in an encoder's folder; None for a hub id, whose files the hub's own cache stores by hash."""
    local = Path(place.removeprefix("file://")).expanduser()
    try:
        if not is_remote(place) and local.is_dir():
            names = [file.name for file in local.iterdir()]
            return listed_folder(place, local, (name for name in names if any(fnmatch(name, kind) for kind in FILES)))
        return listed_file(place)
    except place_errors() as error:
        if not is_remote(place) and place.count("/") == 1 and not local.parent.exists():
            return None
        raise UserError(f"{field}: {place} cannot be read ({reason(error)})") from error
