"""Searches replayed on recorded curves, in simulated time: the tables, the event queue, and the searches that are compared."""

from __future__ import annotations

import heapq
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bench.search.spaces import Space
from fewshot_ray.search.sweep_folder import EvaluationRow

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """The recorded curves of a space on one split.

    Arrays `[configuration, evaluation]`; NaN after a configuration failed.
    """

    space: Space
    split: int
    every: int
    """Steps between evaluations."""
    metrics: Mapping[str, Array]
    image_losses: Array | None
    """`[configuration, evaluation, image]`: the mean loss of each held-out image; None for a space without a held-out loss."""

    @classmethod
    def read(cls, path: Path, space: Space, split: int) -> Table:
        """The curves of one split, of a file that record.py wrote. Raises SystemExit where it isn't there."""
        if not path.exists():
            sys.exit(f"{path} is missing: python bench/search/record.py --space {space.name} --kept FOLDER writes it")
        whole = pq.read_table(path)
        said = json.loads(whole.schema.metadata[b"fewshot_ray"])
        table = whole.filter(np.asarray(whole["split"]) == split)
        steps = sorted(set(table["step"].to_pylist()) - {0})
        rows = np.asarray(table["configuration"]), np.asarray([steps.index(step) if step else -1 for step in table["step"].to_pylist()])
        shape = len(said["values"]), len(steps)

        def placed(values: NDArray[Any]) -> Array:
            array = np.full((*shape, *values.shape[1:]), np.nan)
            measured = rows[1] >= 0
            array[rows[0][measured], rows[1][measured]] = values[measured]
            return array

        names = [name for name in table.column_names if name not in ("configuration", "split", "step", "cpu_sec", "failed", "losses")]
        metrics = {name: placed(np.asarray(table[name], dtype=float)) for name in names}
        losses = None
        if "losses" in table.column_names:
            draws = np.stack([np.asarray(one, dtype=float) for one in table["losses"].to_pylist()])
            of_source = np.asarray(said["sources"][str(split)]["losses"])
            losses = placed((draws + of_source).reshape(len(draws), -1, draws.shape[1] // 10).transpose(0, 1, 2).mean(axis=2))
        return cls(space, split, steps[1] - steps[0], metrics, losses)

    @cached_property
    def configurations(self) -> list[dict[str, Any]]:
        """The values of each."""
        return [self.space.configuration(number) for number in range(len(self))]

    def __len__(self) -> int:
        return len(next(iter(self.metrics.values())))

    def row(self, configuration: int, evaluation: int) -> EvaluationRow:
        """An evaluation as a worker reports it."""
        metrics = {name: float(values[configuration, evaluation]) for name, values in self.metrics.items() if not name.startswith("test_")}
        images = [] if self.image_losses is None else self.image_losses[configuration, evaluation].tolist()
        return EvaluationRow(self.every * (evaluation + 1), 0.0, metrics, 0.0, 0.0, 0.0, 1.0, images)


@dataclass
class Trial:
    """A configuration that is trained."""

    number: int
    configuration: int
    until: int
    """The number of evaluations that it is to have, if nothing stops it."""
    done: int = 0
    """The number of evaluations that it has had."""
    stopped: str | None = None
    """Why it was stopped."""
    extra: dict[str, Any] = field(default_factory=dict)


class Search(Protocol):
    """A search that is replayed."""

    def next(self) -> Trial | None:
        """What a free worker trains: a new trial, or one that goes on; None where it must wait, or nothing is left."""
        ...

    def evaluated(self, trial: Trial) -> bool:
        """The trial has had evaluation `trial.done - 1`; whether it stops."""
        ...

    def ended(self, trial: Trial) -> None:
        """The trial has stopped, or has had all its evaluations."""
        ...


@dataclass(frozen=True)
class Replay:
    """What a search did."""

    steps: NDArray[np.int64]
    """Steps that all workers had trained when each evaluation was there."""
    found: NDArray[np.int64]
    """`[evaluation, 2]`: the configuration, and the number of its evaluation."""
    trials: Sequence[Trial]

    def incumbent(self, values: Array) -> Array:
        """The best value found after each evaluation, of values `[configuration, evaluation]` of which less is better."""
        seen = values[self.found[:, 0], self.found[:, 1]]
        return np.fmin.accumulate(np.where(np.isnan(seen), np.inf, seen))


Enough = Callable[[int, Trial, int], bool]
"""Whether a replay ends after an evaluation, given the steps trained by then, its trial, and the number of trials that have begun."""


def replay(search: Search, table: Table, *, workers: int, enough: Enough = lambda *_: False) -> Replay:
    """Run a search on the table until it has done enough, or nothing is left. Every step takes the same time."""
    queue: list[tuple[int, int, Trial]] = []
    steps: list[int] = []
    found: list[tuple[int, int]] = []
    trials: dict[int, Trial] = {}
    now = order = trained = 0
    while True:
        while len(queue) < workers and (trial := search.next()) is not None:
            trials[trial.number] = trial
            heapq.heappush(queue, (now + 1, order := order + 1, trial))
        if not queue:
            break
        now, _, trial = heapq.heappop(queue)
        trained += table.every
        trial.done += 1
        steps.append(trained)
        found.append((trial.configuration, trial.done - 1))
        if search.evaluated(trial) or trial.done >= trial.until:
            search.ended(trial)
        else:
            heapq.heappush(queue, (now + 1, order := order + 1, trial))
        if enough(trained, trial, len(trials)):
            break
    return Replay(np.array(steps), np.array(found), list(trials.values()))
