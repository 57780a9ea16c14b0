"""Computations that trials share, done once and cached under a hash of all they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from fewshot_ray.storage import Folder


@dataclass(frozen=True)
class Stage:
    """Tensors that are computed once for a whole sweep.

    `depends_on` (JSON values: data hashes, fold, source weights, settings, code version) alone decides the result.
    """

    name: str
    depends_on: dict[str, Any]
    compute: Callable[[], dict[str, Tensor]]

    @property
    def key(self) -> str:
        """20 hex digits of sha256 over name and dependencies; the cache's folder name."""
        text = json.dumps([self.name, self.depends_on], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def build(stage: Stage, cache: Folder) -> None:
    """Compute the stage and write it under `cache/<key>/`, unless it is there."""
    folder = cache / stage.key
    if folder.exists("stage.json"):
        return
    folder.write_bytes("tensors.safetensors", save({name: tensor.cpu().contiguous() for name, tensor in stage.compute().items()}))
    folder.write_text("stage.json", json.dumps({"name": stage.name, "depends_on": stage.depends_on}, indent=2, sort_keys=True))


def read(stage: Stage, cache: Folder) -> dict[str, Tensor]:
    """The stage's tensors, computed and cached where they aren't there yet."""
    build(stage, cache)
    return dict(load((cache / stage.key).read_bytes("tensors.safetensors")))
