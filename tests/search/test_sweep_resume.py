"""Sweeps that are killed at any point, and resumed."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fewshot_ray.search.job import Job
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.storage import Folder
from tests.search.killing import Killed, Killer, killed
from tests.search.synthetic import ASHA, CROSSFIT, FULL, SMALL, curve, evaluations, file, finish, open_sweep, outcome

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture(params=["local", "remote"])
def folder_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def places(folder_kind: str, tmp_path: Path) -> Iterator[Iterator[Folder]]:
    """Fresh folders on disk, or at a URL (where the journal on the driver's disk is lost with it)."""
    if folder_kind == "local":
        yield (Folder(tmp_path / str(number)) for number in itertools.count())
    else:
        yield (Folder(f"memory://{tmp_path.name}/{number}") for number in itertools.count())
        fsspec.filesystem("memory").store.clear()


RESUMED: dict[str, dict[str, Any]] = {
    "tpe, asha, confirm 2, refit": {"target": CROSSFIT, "search": FULL},
    "two objectives, bound, asha": {
        "search": {
            "trials": 5,
            "objectives": {"kid": "min", "holdout_loss": "min"},
            "constraints": {"memorisation": "<= 0.2"},
            "scheduler": ASHA,
            "sampler": "random",
        }
    },
    "repeats, failing": {
        "method": SMALL,
        "train": {"lr": 1e-3, "params": "full"},
        "search": {"trials": 5, "sampler": "random"},
    },
    "race, turned, confirm": {
        "train": {"steps": 20},
        "search": {"trials": 6, "scheduler": {"race": {}}, "confirm": {"seeds": [3]}},
    },
    "bound, failing": {"search": {"trials": 4, "constraints": {"memorisation": "<= 0.1"}}},
}


def failing(job: Job, step: int) -> dict[str, float]:
    """The second trial never has a value."""
    return {**curve(job, step), **({"holdout_loss": math.nan} if job.id == "t0001" else {})}


@pytest.mark.parametrize("when", ["torn", "after"])
@pytest.mark.parametrize("case", RESUMED)
def test_killed_at_every_write(case: str, when: str, places: Iterator[Folder], folder_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the undisturbed sweep: records, evaluations, specs, rungs and the whole study; what had ended doesn't run again."""
    document, made = file(**RESUMED[case]), failing if "failing" in case else curve
    counter = Killer(None, when)
    with monkeypatch.context() as patch:
        counter.install(patch)
        undisturbed = open_sweep(next(places), document)
        finish(undisturbed, made)
    expected = outcome(undisturbed)
    if when == "torn":
        assert {record["state"] for record in expected.values() if isinstance(record, dict) and "state" in record} > {"COMPLETE"}
    every = {("torn", "local"): 1, ("torn", "remote"): 3}.get((when, folder_kind), 5)
    for at in range(1, counter.count + 1, every):
        folder = next(places)
        killed(folder, document, Killer(at, when), made)
        ended = {record.id for record in SweepFolder(folder).trials() if record.state != "RUNNING"}
        resumed = open_sweep(folder, document)
        assert not ended & set(finish(resumed, made)), at
        assert outcome(resumed) == expected, at
        if folder.local is not None:
            shutil.rmtree(folder.local)


@pytest.mark.parametrize("every", [7, 13])
def test_killed_again_and_again(every: int, tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep, after a kill at every `every`-th write."""
    document = file(**RESUMED["tpe, asha, confirm 2, refit"])
    undisturbed = open_sweep(Folder(tmp_path / "a"), document)
    finish(undisturbed)
    kills = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            Killer(every, "torn").install(patch)
            try:
                resumed = open_sweep(Folder(tmp_path / "b"), document)
                finish(resumed)
                break
            except Killed:
                kills += 1
                assert kills < 200
    assert kills > 5
    assert outcome(resumed) == outcome(undisturbed)


def test_several_at_a_time_resume_with_their_rungs(tmp_path: Path) -> None:
    """Oracle: the live rungs; trials that run go on under their ids, in whatever order their evaluations came, with a clock set back."""
    document = file(search={"trials": 6, "scheduler": ASHA})
    sweep = open_sweep(Folder(tmp_path), document, concurrent=3)
    clock = itertools.count(1000, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: float(next(clock)))
        jobs = [sweep.next_job() for _ in range(3)]
        rows = {job.id: evaluations(job) for job in jobs if isinstance(job, Job)}
        stopped = [id for step in range(2) for id in reversed(list(rows)) if id in rows and sweep.evaluated(id, next(rows[id]))]
    assert sweep.stopping.halving is not None
    resumed = open_sweep(Folder(tmp_path), document, concurrent=3)
    assert resumed.stopping.halving is not None
    assert resumed.stopping.halving.rungs == sweep.stopping.halving.rungs
    running = [id for id in rows if id not in stopped]
    states = {record.id: record.state for record in resumed.folder.trials()}
    assert states == {id: "RUNNING" if id in running else "PRUNED" for id in rows}
    assert [job.id for _ in running if isinstance(job := resumed.next_job(), Job)] == running


def test_a_removed_folder_runs_again(tmp_path: Path) -> None:
    """Oracle: the same record as before: removing a damaged trial's folder is what the error advises."""
    document = file(search={"trials": 3})
    sweep = open_sweep(Folder(tmp_path), document)
    finish(sweep)
    expected = outcome(sweep)
    shutil.rmtree(tmp_path / "trials" / "t0001")
    again = open_sweep(Folder(tmp_path), document)
    assert finish(again) == ["t0001"]
    assert outcome(again) == expected


def test_a_removed_folder_runs_again_after_an_interruption(tmp_path: Path) -> None:
    """Oracle: the same record as before, with every evaluation, though the journal says that the trial has ended."""
    document = file(search={"trials": 3})
    sweep = open_sweep(Folder(tmp_path), document)
    finish(sweep)
    expected = outcome(sweep)
    shutil.rmtree(tmp_path / "trials" / "t0001")
    interrupted = open_sweep(Folder(tmp_path), document)
    job = interrupted.next_job()
    assert isinstance(job, Job)
    interrupted.evaluated(job.id, next(evaluations(job)))
    interrupted.abandon()
    again = open_sweep(Folder(tmp_path), document)
    assert finish(again) == ["t0001"]
    assert outcome(again) == expected


def test_abandoned_trials_go_on(tmp_path: Path) -> None:
    """Oracle: RUNNING on record, first in the queue afterwards, with no evaluation twice."""
    document = file(search={"trials": 2})
    sweep = open_sweep(Folder(tmp_path), document)
    job = sweep.next_job()
    assert isinstance(job, Job)
    sweep.evaluated(job.id, next(evaluations(job)))
    sweep.abandon()
    assert not sweep.done
    again = open_sweep(Folder(tmp_path), document)
    assert finish(again) == ["t0000", "t0001"]
    assert [row.step for row in again.folder.rows("t0000")] == [2, 4, 6, 8]
