"""The fields of a file that say where something is read from: images, models, weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES = {"source": ("images",), "target": ("images", "holdout", "test")}
FILES = {"source": ("model",), "evaluate": ("extractor_weights", "lpips_weights")}


COLUMN = "?column="
"""Between a Parquet place and the column that is to be read of it."""


def without_column(place: str) -> tuple[str, str | None]:
    """A place, and the column that is named behind it."""
    before, mark, column = place.rpartition(COLUMN)
    return (before, column) if mark and column and "/" not in column else (place, None)


@dataclass(frozen=True)
class Place:
    """A field that holds a place, in the tree it stands in, which `put` changes."""

    path: str
    """Dotted, as the file's messages have it."""
    node: dict[str, Any]
    key: str
    images: bool

    @property
    def value(self) -> str:
        """A path, URL, hub id or embedded://..."""
        return str(self.node[self.key])

    @property
    def bare(self) -> str:
        """The same without the column of a Parquet place."""
        return without_column(self.value)[0]

    def put(self, place: str) -> None:
        """Name another place there; the column stays."""
        column = without_column(self.value)[1]
        self.node[self.key] = place if column is None else f"{place}{COLUMN}{column}"

    @property
    def here(self) -> Path | None:
        """Its absolute path where it is a file or folder on this machine's disk."""
        try:
            path = Path(self.bare).expanduser()
            return path.resolve() if path.exists() else None
        except (OSError, RuntimeError):  # a name that is too long, nobody's home
            return None


def places(tree: dict[str, Any]) -> Iterator[Place]:
    """Every place that a file's tree names, valid or not."""
    for sections, images in ((IMAGES, True), (FILES, False)):
        for section, keys in sections.items():
            yield from _in(tree.get(section), section, keys, images)
    source = tree.get("source")
    if isinstance(source, dict):
        yield from _in(source.get("adm"), "source.adm", ("weights",), False)
        gan = source.get("gan")
        for name, settings in gan.items() if isinstance(gan, dict) else ():
            yield from _in(settings, f"source.gan.{name}", ("weights",), False)


def _in(node: Any, path: str, keys: tuple[str, ...], images: bool) -> Iterator[Place]:
    for key in keys if isinstance(node, dict) else ():
        if isinstance(node.get(key), str) and node[key] != "generated":
            yield Place(f"{path}.{key}", node, key, images)
