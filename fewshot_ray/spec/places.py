"""The fields of a run's file that name places to read (images, models, weights), and how places are resolved.

`~` and `$VAR` are expanded in the environment of the process that reads the file. Relative inputs are relative to the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewshot_ray.spec.alternatives import Alternatives

IMAGES = {"source": ("images",), "target": ("images", "holdout", "test")}
FILES = {"evaluate": ("extractor_weights", "inception_weights", "lpips_weights")}
HUBS = {"evaluate": ("dinov2_weights", "clip_weights")}
"""Folders, or hub ids (owner/name)."""
EARLIER = "search.from"
"""The field that names earlier sweeps."""

COLUMN = "?column="
"""Separates a Parquet place from the name of its column."""


def without_column(place: str) -> tuple[str, str | None]:
    """A place, and the name of the column after it, if any."""
    before, mark, column = place.rpartition(COLUMN)
    return (before, column) if mark and column and "/" not in column else (place, None)


@dataclass(frozen=True)
class Place:
    """A field of a file's tree that names a place; `put` changes it in the tree."""

    path: str
    """Dotted path of the field."""
    node: Any
    """The mapping or list that it is in."""
    key: str | int
    images: bool
    hub: bool = False
    """Whether it may also be a hub id (owner/name)."""

    @property
    def value(self) -> str:
        """A path, URL, hub id or embedded://..."""
        return str(self.node[self.key])

    @property
    def bare(self) -> str:
        """The value without the column of a Parquet place."""
        return without_column(self.value)[0]

    def put(self, place: str) -> None:
        """Replace the place; the column stays."""
        column = without_column(self.value)[1]
        self.node[self.key] = place if column is None else f"{place}{COLUMN}{column}"

    @property
    def is_missing(self) -> bool:
        """Whether it is an absolute local path that doesn't exist; False for a relative one, which is a hub id."""
        return self.here is None and os.path.isabs(_on_disk(self.bare))

    @property
    def here(self) -> Path | None:
        """Its absolute path, links followed, where it is a local file or folder; else None."""
        try:
            path = Path(_on_disk(self.bare))
            return path.resolve() if path.exists() else None
        except (OSError, ValueError):  # too long, or not a valid path
            return None

    @property
    def is_sweep(self) -> bool:
        """Whether it names an earlier sweep."""
        return self.path.startswith(f"{EARLIER}.")


def _on_disk(place: str) -> str:
    """`file:///a` as a path; anything else is unchanged."""
    return place.removeprefix("file://") if place.startswith("file:///") else place


def places(tree: dict[str, Any]) -> Iterator[Place]:
    """Every place in a file's tree, valid or not."""
    for sections, images, hub in ((IMAGES, True, False), (FILES, False, False), (HUBS, False, True)):
        for section, keys in sections.items():
            yield from _in(tree.get(section), section, keys, images, hub=hub)
    source, methods = tree.get("source"), tree.get("method")
    yield from _in(source, "source", ("model",), False, hub=True)
    if isinstance(source, dict):
        yield from _in(source.get("adm"), "source.adm", ("weights",), False)
        gan = source.get("gan")
        for name, settings in gan.items() if isinstance(gan, dict) else ():
            yield from _in(settings, f"source.gan.{name}", ("weights",), False, hub=True)
    chosen = {f"method.choice.{index}": one for index, one in enumerate(methods.trees)} if isinstance(methods, Alternatives) else {}
    for path, combination in (chosen or {"method": methods}).items():
        for name, settings in combination.items() if isinstance(combination, dict) else ():
            keys = tuple(key for key in settings if str(key).endswith("_weights")) if isinstance(settings, dict) else ()
            yield from _in(settings, f"{path}.{name}", keys, False, hub=True)
    search = tree.get("search")
    earlier = search.get("from") if isinstance(search, dict) else None
    for index, sweep in enumerate(earlier if isinstance(earlier, list) else ()):
        if isinstance(sweep, str):
            yield Place(f"{EARLIER}.{index}", earlier, index, False)


def _in(node: Any, path: str, keys: tuple[str, ...], images: bool, *, hub: bool = False) -> Iterator[Place]:
    for key in keys if isinstance(node, dict) else ():
        if isinstance(node.get(key), str) and node[key] != "generated":
            yield Place(f"{path}.{key}", node, key, images, hub)


def expanded(text: str) -> str:
    """`text` with `~` and `$VAR` replaced by their values; those without a value stay."""
    return os.path.expanduser(os.path.expandvars(text))


def resolve(tree: dict[str, Any], folder: str) -> dict[str, str]:
    """Resolve the places of a tree whose file is in `folder`, in the tree itself; returns the changed ones as given, by dotted path.

    A relative `storage` stays relative: it is so to the working directory.
    """
    given = {}
    for place in places(tree):
        text, before = place.bare, place.value
        meant = _meant(text, folder, hub=place.hub)
        if meant != text:
            given[place.path] = before
            place.put(meant)
    storage = tree.get("storage")
    if isinstance(storage, str) and not os.path.exists(storage):  # a folder's name may contain a `$`
        tree["storage"] = expanded(storage)
    return given


def _meant(text: str, folder: str, *, hub: bool) -> str:
    if "://" in text:
        return os.path.expandvars(text)
    if os.path.exists(literally := os.path.join(folder, text)):
        return str(Path(literally))
    path = expanded(text)
    beside = str(Path(folder, path))
    # `~nobody` isn't relative to the file; owner/name is a hub id where there is no such folder.
    may_be_a_hubs = hub and path.count("/") == 1 and not path.startswith(("/", ".")) and not os.path.exists(beside)
    return path if not path or path.startswith("~") or may_be_a_hubs else beside
