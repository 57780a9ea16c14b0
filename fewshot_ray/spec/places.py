"""The fields of a file that say where something is read from: images, models, weights; and what a place in a file means.

`~` and `$VAR` stand for what they are to the user who reads the file. Relative inputs are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMAGES = {"source": ("images",), "target": ("images", "holdout", "test")}
FILES = {"evaluate": ("extractor_weights", "lpips_weights")}


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
    hub: bool = False
    """Whether it may be a hub's id (owner/name) as well."""

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
    def is_missing(self) -> bool:
        """Whether it is a path of this machine's disk where nothing is. Of a relative one, a hub's id, nothing is known."""
        return self.here is None and os.path.isabs(_on_disk(self.bare))

    @property
    def here(self) -> Path | None:
        """Its absolute path, links followed, where it is a file or folder on this machine's disk."""
        try:
            path = Path(_on_disk(self.bare))
            return path.resolve() if path.exists() else None
        except (OSError, ValueError):  # a name that is too long, or none
            return None


def _on_disk(place: str) -> str:
    """`file:///a` as the path that it names; other URLs, which are no absolute paths, stay."""
    return place.removeprefix("file://") if place.startswith("file:///") else place


def places(tree: dict[str, Any]) -> Iterator[Place]:
    """Every place that a file's tree names, valid or not."""
    for sections, images in ((IMAGES, True), (FILES, False)):
        for section, keys in sections.items():
            yield from _in(tree.get(section), section, keys, images)
    source, methods = tree.get("source"), tree.get("method")
    yield from _in(source, "source", ("model",), False, hub=True)
    if isinstance(source, dict):
        yield from _in(source.get("adm"), "source.adm", ("weights",), False)
        gan = source.get("gan")
        for name, settings in gan.items() if isinstance(gan, dict) else ():
            yield from _in(settings, f"source.gan.{name}", ("weights",), False, hub=True)
    for name, settings in methods.items() if isinstance(methods, dict) else ():
        keys = tuple(key for key in settings if str(key).endswith("_weights")) if isinstance(settings, dict) else ()
        yield from _in(settings, f"method.{name}", keys, False, hub=True)


def _in(node: Any, path: str, keys: tuple[str, ...], images: bool, *, hub: bool = False) -> Iterator[Place]:
    for key in keys if isinstance(node, dict) else ():
        if isinstance(node.get(key), str) and node[key] != "generated":
            yield Place(f"{path}.{key}", node, key, images, hub)


def expanded(text: str) -> str:
    """With the home directory and the variables that `~` and `$VAR` stand for; what stands for nothing stays."""
    return os.path.expanduser(os.path.expandvars(text))


def resolve(tree: dict[str, Any], folder: str) -> dict[str, str]:
    """Put into a tree what its places mean in a file that lies in `folder`; returns what was given, by dotted path, where it differs.

    `storage` keeps what is relative in it: that is relative to the working directory.
    """
    given = {}
    for place in places(tree):
        text, before = place.bare, place.value
        meant = _meant(text, folder, hub=place.hub)
        if meant != text:
            given[place.path] = before
            place.put(meant)
    storage = tree.get("storage")
    if isinstance(storage, str) and not os.path.exists(storage):  # the name of a folder may hold a `$`
        tree["storage"] = expanded(storage)
    return given


def _meant(text: str, folder: str, *, hub: bool) -> str:
    if "://" in text:
        return os.path.expandvars(text)
    if os.path.exists(literally := os.path.join(folder, text)):
        return str(Path(literally))
    path = expanded(text)
    beside = str(Path(folder, path))
    # `~nobody` is no name beside the file; owner/name is a hub's where nothing of that name is.
    may_be_a_hubs = hub and path.count("/") == 1 and not path.startswith(("/", ".")) and not os.path.exists(beside)
    return path if not path or path.startswith("~") or may_be_a_hubs else beside
