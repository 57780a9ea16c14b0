"""The source model as it is: on record in a sweep's folder, and no trial."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.search.leaderboard import leaderboard, winner
from fewshot_ray.search.source_record import put_source_on_record, source_row
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document
from tests.search import synthetic

BEST = {"holdout_loss": -100.0, "kid": -100.0, "memorisation": 0.0}


def with_source(folder: Folder, document: Document) -> FileSpec:
    """A sweep's folder in which the source is better than every trial."""
    _, file = check_document(document)
    put_source_on_record(SweepFolder(folder), file, {"metrics": BEST, "image_losses": [-100.0] * 6, "by_image": {}}, started_sec=1.7e9)
    return file


@pytest.mark.parametrize(
    "search",
    [
        synthetic.FULL,
        {"trials": 6, "scheduler": {"race": {}}, "budget": {"patience": 2}},
        {
            "trials": 4,
            "objectives": {"holdout_loss": "min", "kid": "min"},
            "constraints": {"memorisation": "<= 0.2"},
            "keep_checkpoints": 1,
        },
    ],
)
def test_a_source_that_is_best_changes_nothing(search: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: the same sweep in a folder without it: trials, study, rungs, reruns and winner, also after a resume half-way."""
    document = synthetic.file(search=search)
    plain = synthetic.open_sweep(Folder(tmp_path / "plain"), document)
    order = synthetic.finish(plain)
    file = with_source(Folder(tmp_path / "with"), document)
    first = synthetic.open_sweep(Folder(tmp_path / "with"), document)
    begun = [synthetic.finish_one(first), synthetic.finish_one(first)]
    first.abandon()
    resumed = synthetic.open_sweep(Folder(tmp_path / "with"), document)
    assert [*begun, *synthetic.finish(resumed)] == order
    found = {name: value for name, value in _outcome(resumed).items() if not name.startswith("source")}
    assert found == _outcome(plain)
    rows = leaderboard(resumed.folder, file.search)
    assert [row.trial.id for row in rows if row.trial.kind == "source"] == ["source"]
    (source,) = [row for row in rows if row.trial.kind == "source"]
    assert (source.rank, source.front, source.won, source.step, dict(source.values)) == (None, False, False, 0, BEST)
    best, other = winner(rows), winner(leaderboard(plain.folder, file.search))
    assert best is not None
    assert other is not None
    assert best.trial.id == other.trial.id


def _outcome(sweep: Any) -> dict[str, Any]:
    """`synthetic.outcome` of a sweep in whose folder the source may be, which has no spec."""
    folder = sweep.folder.folder
    if source_row(sweep.folder) is not None:
        (folder / "trials" / "source").write_text("spec.yaml", "")
    return synthetic.outcome(sweep)


def test_the_record_comes_back(tmp_path: Path) -> None:
    """Oracle: what was put in, as its files say; a folder without one has none, and a trial's record can't pose as it."""
    folder = SweepFolder(Folder(tmp_path))
    assert source_row(folder) is None
    file = with_source(folder.folder, synthetic.file())
    row = source_row(folder)
    assert row is not None
    assert (row.step, dict(row.metrics), row.images_of("holdout_loss")) == (0, BEST, (-100.0,) * 6)
    tree = json.loads(folder.trial("source").read_text("trial.json"))
    assert (tree["kind"], tree["state"], tree["best_step"], tree["number"], tree["seed"]) == ("source", "COMPLETE", 0, None, file.seed)
    record = folder.record("source")
    assert record is not None
    folder.write_trial(replace(record, id="sauce"))
    with pytest.raises(UserError, match="kind 'source' of 'sauce'"):
        folder.trials()
