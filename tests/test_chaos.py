"""bench/faults/chaos.py for six kills, two of each target, on a sweep of half its length."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.faults import chaos

pytestmark = pytest.mark.ray


@pytest.fixture
def short_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Ray's sockets lie below it, and their paths must be short."""
    path = Path(tempfile.mkdtemp(prefix="fr-", dir="/tmp"))
    monkeypatch.setenv("RAY_TMPDIR", str(path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_six_kills(short_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the same sweep undisturbed, bit for bit; nothing redone, lost, hung, broken, or left running."""
    monkeypatch.setattr(chaos, "STEPS", 40)
    monkeypatch.setitem(chaos.TRIALS, "disk", 3)
    monkeypatch.setattr(chaos, "PAUSE_SEC", 1.0)
    tally = chaos.Tally(chaos.quotas(["disk"], 6))
    chaos.run_kind("disk", short_folder / "disk", tally, random.Random(5))
    assert sum(tally.kills.values()) == 6
    assert set(tally.kills) == {"actor", "raylet", "driver"}
    assert tally.clean, tally
    assert not tally.gave_up
