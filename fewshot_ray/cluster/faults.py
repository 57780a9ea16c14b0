"""What a trial's worker was lost to, as far as it matters to the sweep. Imports nothing, so that processes without training may."""

from __future__ import annotations

from enum import Enum


class Fault(Enum):
    """Whose it was, and with it what becomes of the trial."""

    OWN = "own"
    """The trial's, as far as one can see: it is tried again `search.retries` times, then it is FAIL."""
    MACHINE_GONE = "machine gone"
    """Its machine went away, or said that it would: tried again elsewhere, and not counted."""
    OUT_OF_MEMORY = "out of memory"
    """The machine's memory ran out: counted as its own, and after the last try the trial stays open for `resume`, once."""
    UNREACHABLE = "unreachable"
    """A place didn't answer for as long as it was waited for: counted, and after the last try the trial stays open for `resume`."""
    FULL = "full"
    """Nothing more can be written: the sweep ends, and the trial stays open for `resume`."""
