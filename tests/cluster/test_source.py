"""The source model in a sweep on a real Ray: measured once, before the trials."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.search.opened import changed, existing_sweep
from fewshot_ray.storage import Folder
from tests.cluster.conftest import run, sweep_file

pytestmark = pytest.mark.ray


def test_it_is_measured_once(local_ray: None, tmp_path: Path) -> None:
    """Oracle: its files and the cached stages, which a resume for one more trial leaves as they are; every curve begins from its losses."""
    sections: dict[str, Any] = {
        "source": {"build": None, "images": None, "model": "embedded://digits-ddpm"},
        "train": {"steps": 12},
        "evaluate": {"metrics": ["relative_content"]},
        "search": {"trials": 1, "scheduler": None, "objectives": {"relative_content": "min"}},
    }
    opened = run(sweep_file("tiny", tmp_path, **sections))
    place = tmp_path / "tiny"
    names = [json.loads((stage / "stage.json").read_text())["name"] for stage in (place / "cache").iterdir()]
    assert sorted(names) == ["source-images", "source-losses"]
    (row,) = opened.folder.rows("source")
    assert row.metrics["relative_content"] == pytest.approx(1)
    assert row.metrics["drift"] == 0
    assert {path.name for path in (place / "trials/source").iterdir()} >= {"trial.json", "metrics.jsonl", "samples", "losses"}
    before = {path: path.stat().st_mtime_ns for path in [*place.rglob("cache/*/*"), *place.glob("trials/source/*.json*")]}
    run_sweep(changed(existing_sweep(Folder(place)), limits={"trials": 2}))
    assert {path: path.stat().st_mtime_ns for path in [*place.rglob("cache/*/*"), *place.glob("trials/source/*.json*")]} == before
    assert [record.id for record in opened.folder.trials()] == ["t0000", "t0001", "source"]
