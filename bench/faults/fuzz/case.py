"""One malformed input and the command that is given it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.faults.fuzz.bases import Bases
from fewshot_ray.spec.document import to_yaml

MARKER = "touched-by-a-pickle"


@dataclass
class Case:
    """A command on malformed input; it runs with `folder` as its working directory."""

    folder: Path
    arguments: list[str]
    said: str
    """What is wrong, for a person."""
    names: tuple[str, ...]
    """A refusal's line must have one of them, or a dotted field."""
    owned: tuple[str, ...] = ()
    """Globs, relative to `folder`, of what the command may add, and of what it may change."""
    appended: tuple[str, ...] = ()
    """Globs of files that may grow at their end."""
    must: Literal["refuse", "accept"] | None = None
    """Where what is given leaves no choice."""
    shown: tuple[str, ...] = ()
    """What must be said, whatever is answered; where lines break is no matter."""
    pictures: int | None = None
    """Files at `target.images`, folders aside: as many must be read or counted as passed over, where the file is accepted."""

    @property
    def marker(self) -> Path:
        """There only where a pickle ran."""
        return self.folder.parent / MARKER


Kind = Callable[[random.Random, Bases, Path], Case]


def check_case(folder: Path, tree: dict[str, Any], said: str, *names: str) -> Case:
    """`check` on a run file of that tree."""
    (folder / "mine.yaml").write_text(to_yaml(tree))
    return Case(folder, ["check", "mine.yaml"], said, names)


def changed(bases: Bases, name: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """A base's tree with other values in some sections."""
    tree = copy.deepcopy(bases.trees[name])
    return {**tree, **{section: {**tree[section], **values} for section, values in sections.items()}}


def at_some_place(rng: random.Random, bases: Bases, place: str) -> dict[str, Any]:
    """A base's tree with `place` as one of those that pictures are read from."""
    section, name = rng.choice(
        (("target", "images"), ("target", "images"), ("target", "holdout"), ("target", "test"), ("source", "images"))
    )
    return changed(bases, "short", **{section: {name: place}})
