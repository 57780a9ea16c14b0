"""A job: one trial to run. Imports nothing heavy, for the processes that run it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fewshot_ray.search.sweep_folder import Kind


@dataclass(frozen=True)
class Job:
    """One trial to run."""

    id: str
    number: int | None
    kind: Kind
    origin: str
    label: str
    tree: dict[str, Any]
    """The trial's spec, without ranges."""
    seed: int
    last_step: int
    """The step it ends at, at most its `train.steps`, which the schedule of the learning rate is made for."""
    folds: int
    refit_steps: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The job as text: a single value, since Tune would flatten a mapping into its tables."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))
