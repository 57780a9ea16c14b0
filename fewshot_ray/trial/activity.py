"""What a trial is at between two evaluations. Imports nothing: the process that passes it on has neither torch nor the trial."""

from __future__ import annotations

from typing import NamedTuple


class Activity(NamedTuple):
    """What is being done, and how far the training is."""

    doing: str
    """`training`, `measuring`, or what is being prepared."""
    step: int | None = None
    """Finished optimiser steps; None where they aren't known yet."""
    steps_per_sec: float | None = None
    """While training: of the last few seconds, all folds together."""
