"""The fields of a file that say where something is read from: images, models, weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READABLE = (".jpeg", ".jpg", ".png", ".webp")
# Pictures all the same: passing over two of somebody's ten photographs in silence would be worse than refusing them.
UNREADABLE = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".ppm", ".tif", ".tiff")
IMAGES = {"source": ("images",), "target": ("images", "holdout", "test")}
FILES = {"source": ("model",), "evaluate": ("extractor_weights", "lpips_weights")}


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

    def put(self, place: str) -> None:
        """Name another place there."""
        self.node[self.key] = place

    @property
    def here(self) -> Path | None:
        """Its absolute path where it is a file or folder on this machine's disk."""
        try:
            path = Path(self.value).expanduser()
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
