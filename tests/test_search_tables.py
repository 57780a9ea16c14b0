"""bench/search/record.py: the spaces, and what is recorded of a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bench.search import record
from bench.search.spaces import DIGITS, SPACES, Space
from fewshot_ray.spec.document import Document
from fewshot_ray.trial.compose import compose


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_every_configuration_is_one_of_its_own_and_a_file(space: Space) -> None:
    """Oracle: all differ, the learning rates lie on both sides of the range's middle, and each composes."""
    found = [space.configuration(number) for number in range(space.configurations)]
    assert len({json.dumps(one) for one in found}) == space.configurations
    rates = [one["lr"] for one in found]
    middle = (space.dimensions["lr"].low * space.dimensions["lr"].high) ** 0.5  # type: ignore[union-attr]
    assert 0.4 < np.mean([rate < middle for rate in rates]) < 0.6
    assert space.configuration(7) == found[7]
    for one in found[:20]:
        compose(Document(space.tree(one, 1), space.name))


def short(space: Space) -> Space:
    """The space with two steps, an evaluation after each."""

    def tree(values: Any, split: int) -> dict[str, Any]:
        made = space.tree(values, split)
        made["train"] |= {"steps": 2, "batch_size": 4}
        made["evaluate"] |= {"every": 1, "samples": 24, "sampler_steps": 2, "final_samples": 24, "loss_draws": 20}
        return made

    return replace(space, tree=tree)


def test_what_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the losses' mean is the metric, whole and less the source's; the table has them to half precision."""
    monkeypatch.setattr(record, "TABLES", tmp_path / "tables")
    space = short(DIGITS)
    found = [record.recorded(space, configuration, 0, str(tmp_path / "cache")) for configuration in (record.SOURCE, 0)]
    source, run = found[0]["rows"][0], found[1]
    assert [row["step"] for row in run["rows"]] == [1, 2]
    assert run["failed"] is None
    for row in run["rows"]:
        assert np.mean(row["losses"]) == pytest.approx(row["metrics"]["holdout_loss"], rel=1e-5)
        assert row["test"]["holdout_loss"] != row["metrics"]["holdout_loss"]
        assert row["test"].keys() == row["metrics"].keys()
    table = pq.read_table(record.write_table(space, found))
    assert table["step"].to_pylist() == [1, 2]
    less = np.array(table["losses"].to_pylist())
    assert less.shape == (2, 20)
    assert less[1] == pytest.approx(np.subtract(run["rows"][1]["losses"], source["losses"]), abs=2e-3)
    said = json.loads(table.schema.metadata[b"fewshot_ray"])
    assert said["values"]["0"] == space.configuration(0)
    assert table["test_kid"][0].as_py() == pytest.approx(run["rows"][0]["test"]["kid"], rel=1e-5)
