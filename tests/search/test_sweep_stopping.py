"""Trials of a sweep that end before their last step: who is stopped, and who never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.search.job import Job
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.ranges import Choice, IntRange
from fewshot_ray.storage import Folder
from tests.search.synthetic import ASHA, curve, evaluations, file, finish, open_sweep, run_job

pytestmark = pytest.mark.usefixtures("light")


def test_stopped_trials(tmp_path: Path) -> None:
    """Oracle: what is stopped has no later evaluation, is PRUNED on both sides, and can't win; the others are of full length."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 10, "scheduler": ASHA}))
    finish(sweep)
    records = sweep.folder.trials()
    assert {record.state for record in records} == {"PRUNED", "COMPLETE"}
    for record in records:
        rows = sweep.folder.rows(record.id)
        told = sweep.study.study.trials[record.number or 0]
        assert told.state.name == record.state
        assert told.intermediate_values == {row.step: row.metrics["holdout_loss"] for row in rows}
        assert (rows[-1].step == 8) == (record.state == "COMPLETE")
        assert rows[-1].step in (2, 4, 8)
    complete = [record.values["holdout_loss"] for record in records if record.state == "COMPLETE" and record.values]
    assert sweep.study.study.best_value == min(complete)


def test_what_the_search_is_compared_with_runs_to_its_end(tmp_path: Path) -> None:
    """Oracle: preset and plain are worst at every rung and complete all the same; the sampler's trials behind the best are stopped."""

    def references_are_worst(job: Job, step: int) -> dict[str, float]:
        return {**curve(job, step), "holdout_loss": 1.0 if job.origin == "sampler" else 9.0}

    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 6, "scheduler": ASHA}))
    job = sweep.next_job()
    assert isinstance(job, Job)
    assert sweep.stopping.halving is not None
    for better in map(str, range(20)):
        sweep.stopping.halving.report(better, 2, {"holdout_loss": 0.1})
        sweep.stopping.halving.report(better, 4, {"holdout_loss": 0.1})
    run_job(sweep, job, references_are_worst)
    finish(sweep, references_are_worst)
    states = {(record.origin, record.state) for record in sweep.folder.trials()}
    assert states == {("preset", "COMPLETE"), ("plain", "COMPLETE"), ("sampler", "PRUNED")}


def test_where_the_length_is_searched(tmp_path: Path) -> None:
    """Oracle: a trial that ran to its own end is COMPLETE after resuming too, though longer ones have a rung there."""
    document = file(train={"steps": Choice((8, 2))}, search={"trials": 10, "scheduler": ASHA})
    sweep = open_sweep(Folder(tmp_path), document)
    assert sweep.stopping.halving is not None
    assert list(sweep.stopping.halving.rungs) == [2, 4]
    while len(sweep.folder.trials()) < 10:
        job = sweep.next_job()
        assert isinstance(job, Job)
        for row in evaluations(job):
            if sweep.evaluated(job.id, row):
                break
        if job.last_step == 2:
            sweep = open_sweep(Folder(tmp_path), document)
            record = sweep.folder.record(job.id)
            assert record is not None
            assert record.state == "COMPLETE"
        else:
            sweep.ended(job.id)
    assert {record.params["train.steps"] for record in sweep.folder.trials()} == {2, 8}
    other = open_sweep(Folder(tmp_path / "b"), file(train={"steps": IntRange(2, 8)}, search={"scheduler": ASHA}))
    assert other.stopping.halving is not None
    assert list(other.stopping.halving.rungs) == [2, 4]


def test_a_constraint_decides_who_is_stopped(tmp_path: Path) -> None:
    """Oracle: the lower the loss, the more is memorised: what keeps the bound runs to its end and wins, what doesn't is stopped."""

    def overfit(job: Job, step: int) -> dict[str, float]:
        steep = (job.number or 0) % 2 == 1
        return {"holdout_loss": 0.1 if steep else 0.5, "kid": 1.0, "memorisation": 0.9 if steep else 0.1}

    search = {"trials": 12, "scheduler": ASHA, "constraints": {"memorisation": "<= 0.2"}, "include_plain": False}
    sweep = open_sweep(Folder(tmp_path), file(search=search))
    finish(sweep, overfit)
    states = {(record.number or 0) % 2: set() for record in sweep.folder.trials()}
    for record in sweep.folder.trials():
        states[(record.number or 0) % 2].add(record.state)
    assert states == {0: {"COMPLETE"}, 1: {"PRUNED"}}
    assert exported_trial(sweep.folder, sweep.file).id == "t0000"


def test_a_trial_that_failed_stops_none_resumed_or_not(tmp_path: Path) -> None:
    """Oracle: by hand. t0001 is ahead and fails, so t0002 goes on; a sweep that is resumed then knows what the running one does."""
    levels = {"t0000": 0.5, "t0001": 0.1, "t0002": 0.3, "t0003": 0.7}

    def level(job: Job, step: int) -> dict[str, float]:
        return {"holdout_loss": levels[job.id] - step / 1000, "kid": 1.0, "memorisation": 0.0}

    document = file(train={"steps": 20}, search={"trials": 4, "scheduler": {"race": {}}, "include_plain": False})
    sweep = open_sweep(Folder(tmp_path), document, concurrent=2)
    run_job(sweep, sweep.next_job(), level)  # type: ignore[arg-type]
    ahead, other = sweep.next_job(), sweep.next_job()
    assert isinstance(ahead, Job)
    assert isinstance(other, Job)
    leads, follows = evaluations(ahead, level), evaluations(other, level)
    assert not any(sweep.evaluated(ahead.id, next(leads)) for _ in range(2))
    assert not sweep.evaluated(other.id, next(follows))
    sweep.failed(ahead.id, "the denoiser loss is nan at step 5", by_values=True)
    sweep.ended(ahead.id)
    assert not sweep.evaluated(other.id, next(follows))
    before, after = (row.time for row in sweep.folder.rows(other.id))
    assert before < (sweep.folder.record(ahead.id).ended_sec or 0.0) < after  # type: ignore[union-attr]
    resumed = open_sweep(Folder(tmp_path), document)
    assert resumed.folder.record(other.id).state == "RUNNING"  # type: ignore[union-attr]
    for name in ("curves", "best", "complete", "front"):
        assert getattr(resumed.stopping, name) == getattr(sweep.stopping, name)
    assert list(resumed.stopping.front) == [other.id]
    finish(resumed, level)
    ends = [(record.state, record.stopped) for record in resumed.folder.trials()]
    assert ends == [("COMPLETE", None), ("FAIL", None), ("COMPLETE", None), ("PRUNED", f"race: behind {other.id}")]
