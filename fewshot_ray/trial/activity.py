"""A trial's activity between two evaluations. Imports nothing: the process that passes it on has neither torch nor the trial."""

from __future__ import annotations

from typing import NamedTuple


class Activity(NamedTuple):
    """The current activity, and the progress of training."""

    doing: str
    """`training`, `measuring`, or the name of what is being prepared."""
    step: int | None = None
    """Finished optimiser steps; None where not known yet."""
    steps_per_sec: float | None = None
    """Speed of training over the last few seconds, of all folds together; None while not training."""
