"""A sweep on a real Ray whose trials are packed by their memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.cluster.conftest import run, sweep_file

pytestmark = pytest.mark.ray


def test_as_many_as_the_memory_holds(local_ray: None, tmp_path: Path) -> None:
    """Oracle: the times on record: no other trial runs until the first has been evaluated; a later one is begun before another ends."""
    search = {"trials": 4, "concurrent": None, "scheduler": None}
    opened = run(sweep_file("packed", tmp_path, resources={"cpus_per_worker": "auto"}, search=search, train={"steps": 12}))
    records = opened.folder.trials()
    assert [record.state for record in records] == ["COMPLETE"] * 4
    rows = [opened.folder.rows(record.id) for record in records]
    assert all(row.memory["host_peak"] > 50_000_000 for trial in rows for row in trial)
    order = sorted(records, key=lambda record: record.started)
    first = opened.folder.rows(order[0].id)[0].time
    assert all(row.time > first for record in order[1:] for row in opened.folder.rows(record.id))
    assert any(other.started < str(one.ended) for one, other in itertools.pairwise(order))
