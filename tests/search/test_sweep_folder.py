"""Records and rows come back from disk and from an object store as they were written."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder, TrialRecord
from fewshot_ray.storage import Folder

RECORD = TrialRecord(
    "t0007", 7, "search", "sampler", "ant", 3, "COMPLETE", {"train.lr": 0.1 + 0.2, "method.ant.noise_steps": 3, "train.params": "full"}
)
ROW = EvaluationRow(40, 1.7e9 + 0.1, {"holdout_loss": 1 / 3, "kid": 5e-324}, 0.1 + 0.2, 1e-5, 123.4, 0.013)


@pytest.fixture(params=["disk", "object store"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> SweepFolder:
    return SweepFolder(Folder(tmp_path / "s") if request.param == "disk" else Folder(f"memory://{uuid.uuid4().hex}/s"))


def test_record_and_rows_come_back_exactly(empty: SweepFolder) -> None:
    record = replace(RECORD, best_step=40, values={"holdout_loss": 2 / 3}, train_sec=0.1, started="2025-01-02T03:04:05+00:00")
    assert empty.trials() == []
    assert empty.rows("t0007") == []
    empty.write_trial(record)
    rows = [ROW, replace(ROW, step=80, metrics={"holdout_loss": math.inf, "kid": -math.inf}, image_losses=[0.1 + 0.2, math.inf])]
    rows.append(replace(ROW, step=120, by_image={"relative_content": [0.1 + 0.2, math.inf]}))
    for row in rows:
        empty.append_row("t0007", row)
    assert empty.trials() == [record]
    assert empty.rows("t0007") == rows


def test_not_a_number_is_standard_json_and_comes_back(empty: SweepFolder) -> None:
    """Oracle: a JSON parser that refuses the constants NaN and Infinity."""
    empty.append_row("t0000", replace(ROW, metrics={"kid": math.nan}, train_loss=math.nan))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(empty.trial("t0000").read_text("metrics.jsonl"), parse_constant=refuse)
    (row,) = empty.rows("t0000")
    assert math.isnan(row.metrics["kid"])
    assert math.isnan(row.train_loss)


def test_rows_have_the_documented_keys(empty: SweepFolder) -> None:
    empty.append_row("t0000", ROW)
    empty.write_trial(RECORD)
    tree = json.loads(empty.trial("t0000").read_text("metrics.jsonl"))
    assert list(tree) == ["step", "time", "metrics", "train_loss", "lr", "images_per_sec", "trained_share"]
    empty.append_row("t0000", replace(ROW, image_losses=[0.5]))
    assert [*json.loads(empty.trial("t0000").read_text("metrics.jsonl").splitlines()[1])] == [*tree, "image_losses"]
    measured = replace(ROW, by_image={"relative_content": [0.9]}, micro_batch=4, memory={"host_peak": 10**9})
    empty.append_row("t0000", measured)
    assert [*json.loads(empty.trial("t0000").read_text("metrics.jsonl").splitlines()[2])] == [*tree, "by_image", "micro_batch", "memory"]
    assert empty.rows("t0000")[2] == measured
    keys = [
        "id",
        "number",
        "kind",
        "origin",
        "label",
        "seed",
        "state",
        "params",
        "best_step",
        "values",
        "error",
        "failed_by",
        "stopped",
        "train_sec",
        "started",
        "ended",
    ]
    assert list(json.loads(empty.trial("t0007").read_text("trial.json"))) == keys


@pytest.mark.parametrize("kept_bytes", [1, 20, -1])
def test_a_torn_last_line_is_passed_over_and_healed(tmp_path: Path, kept_bytes: int) -> None:
    """A kill leaves any part of the last line, even all of it but its newline."""
    sweep = SweepFolder(Folder(tmp_path))
    sweep.append_row("t0000", ROW)
    path = tmp_path / "trials/t0000/metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept_bytes])
    assert sweep.rows("t0000") == [ROW]
    sweep.append_row("t0000", replace(ROW, step=80))
    assert [row.step for row in sweep.rows("t0000")] == [40, 80]
    assert path.read_bytes().count(b"\n") == 2


def test_a_long_torn_first_line_is_healed(tmp_path: Path) -> None:
    path = tmp_path / "trials/t0000/metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 10_000)
    sweep = SweepFolder(Folder(tmp_path))
    sweep.append_row("t0000", ROW)
    assert sweep.rows("t0000") == [ROW]


def test_trials_stand_by_number_and_need_a_record(empty: SweepFolder) -> None:
    for number in (10, 9, 12345):
        empty.write_trial(replace(RECORD, id=f"t{number:04d}", number=number, state="RUNNING"))
    empty.write_trial(replace(RECORD, id="confirm-t0009-seed1", number=None, kind="confirm", state="RUNNING"))
    empty.trial("t0011").write_text("spec.yaml", "name: x\n")
    assert [trial.id for trial in empty.trials()] == ["t0009", "t0010", "t12345", "confirm-t0009-seed1"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"id": "t0007"}', json.dumps({**vars(RECORD), "state": "DONE"}), json.dumps({**vars(RECORD), "values": 3})]
)
def test_a_damaged_record_is_named_in_one_line(empty: SweepFolder, text: str) -> None:
    empty.trial("t0007").write_text("trial.json", text)
    with pytest.raises(UserError, match=r"^[^\n]*t0007/trial\.json: not a trial's record \([^\n]+$"):
        empty.trials()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "t0008"},
        {"id": "../../t0007"},
        {"number": None},
        {"number": 8},
        {"number": "7"},
        {"kind": "confirm"},
        {"seed": 1.5},
        {"params": []},
        {"best_step": None},
        {"best_step": -40},
        {"best_step": 2**40},
        {"values": None},
        {"values": {"kid": [1]}},
        {"values": {"kid": 10**400}},
        {"train_sec": math.inf},
        {"train_sec": True},
        {"ended": "yesterday"},
        {"label": None},
    ],
)
def test_a_record_that_contradicts_itself_is_named(changes: dict[str, object], empty: SweepFolder) -> None:
    """Oracle: the rule for messages; the record as it was is read."""
    whole = {**vars(RECORD), "best_step": 40, "values": {"kid": 1.0}, "started": "now"}
    empty.trial("t0007").write_text("trial.json", json.dumps(whole))
    assert empty.record("t0007") is not None
    empty.trial("t0007").write_text("trial.json", json.dumps({**whole, **changes}))
    with pytest.raises(UserError, match=r"^[^\n]*t0007/trial\.json: not a trial's record \([^\n]+$"):
        empty.record("t0007")


@pytest.mark.parametrize(
    "line",
    [
        b"[" * 100_000,
        json.dumps({**vars(ROW), "step": 1.5}).encode(),
        json.dumps({**vars(ROW), "step": 2**40}).encode(),
        json.dumps({**vars(ROW), "step": "4"}).encode(),
        json.dumps({**vars(ROW), "time": math.nan}).encode(),
        json.dumps({**vars(ROW), "lr": 10**400}).encode(),
        json.dumps({**vars(ROW), "images_per_sec": 5e-324}).encode(),
        json.dumps({**vars(ROW), "images_per_sec": -1}).encode(),
        json.dumps({**vars(ROW), "metrics": {"kid": {}}}).encode(),
    ],
)
def test_a_line_with_impossible_numbers_is_named(line: bytes, empty: SweepFolder) -> None:
    """Oracle: the rule for messages."""
    empty.trial("t0007").write_bytes("metrics.jsonl", line + b"\n")
    with pytest.raises(UserError, match=r"^[^\n]*metrics\.jsonl, line 1: not an evaluation \([^\n]+$"):
        empty.rows("t0007")


def test_a_damaged_line_within_is_named(empty: SweepFolder) -> None:
    empty.append_row("t0007", ROW)
    empty.trial("t0007").write_text("metrics.jsonl", empty.trial("t0007").read_text("metrics.jsonl") + '{"step": 1}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: not an evaluation \(no 'time'\)"):
        empty.rows("t0007")


def test_grids_are_listed_by_step(empty: SweepFolder) -> None:
    empty.write_grid("t0000", 80, b"b")
    empty.write_grid("t0000", 1_000_000, b"c")
    empty.write_grid("t0000", 0, b"a")
    assert empty.grid_steps("t0000") == [0, 80, 1_000_000]
    assert empty.trial("t0000").read_bytes("samples/step_000080.png") == b"b" == empty.grid("t0000", 80)
