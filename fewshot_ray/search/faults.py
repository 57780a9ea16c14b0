"""The kinds of fault by which a worker is lost. Imports nothing, for processes that don't train."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """Why a worker was lost, which decides how its trial continues."""

    OWN = "own"
    """The trial's own, or unknown: it is retried `search.retries` times, then it is FAIL."""
    MACHINE_GONE = "machine gone"
    """The machine was lost or about to end: retried elsewhere, not counted."""
    OUT_OF_MEMORY = "out of memory"
    """The machine's memory ran out: counted as a retry; after the last one the trial stays open for `resume`, once."""
    UNREACHABLE = "unreachable"
    """A place didn't answer in time: counted as a retry; after the last one the trial stays open for `resume`."""
    FULL = "full"
    """No space left: the sweep ends, and the trial stays open for `resume`."""
