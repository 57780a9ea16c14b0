"""What a sweep tells of its trials as they go: to the user, and for their curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from fewshot_ray.search.sweep_folder import EvaluationRow


class Progress(Protocol):
    """Shows the sweep's progress to the user."""

    def add_trials(self, count: int, *, done: int = 0) -> None:
        """`count` more trials are known, `done` of which have ended already."""
        ...

    def started(self, id: str, label: str, *, steps: int | None = None, step: int = 0) -> None:
        """A trial of `steps` steps starts, or continues from `step`."""
        ...

    def evaluated(self, id: str, step: int, metrics: Mapping[str, float], train_loss: float) -> None:
        """A running trial was evaluated at `step`."""
        ...

    def lost(self, id: str, reason: str, *, again: bool) -> None:
        """A running trial lost its worker; with `again` it is restarted."""
        ...

    def left(self, id: str, reason: str) -> None:
        """A trial can't continue for now, by no fault of its own."""
        ...

    def finished(self, id: str, state: str, values: Mapping[str, float] | None = None, reason: str | None = None) -> None:
        """A trial ended; `values` are its best evaluation's."""
        ...

    def say(self, text: str) -> None:
        """A line about the sweep."""
        ...

    def budget(self, left: str) -> None:
        """What is left of the search's budget; empty where there is none."""
        ...


class Boards(Protocol):
    """Writes the curves of the running trials."""

    def begin(self, trial_id: str, params: Mapping[str, float | str], rows: Iterable[EvaluationRow] = ()) -> None:
        """A trial starts, or continues after `rows`."""
        ...

    def show(self, trial_id: str, row: EvaluationRow) -> None:
        """A trial was evaluated."""
        ...

    def end(self, trial_id: str, *, ended: bool = True) -> None:
        """A trial ended or, without `ended`, was left to be resumed."""
        ...

    def close(self) -> None:
        """The sweep ends."""
        ...
