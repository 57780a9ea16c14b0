"""Trials and sweeps that fail: lost workers and machines, full disks, values that can't be trained."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from fewshot_ray.search.faults import Fault
from fewshot_ray.search.job import Job
from fewshot_ray.search.sweep import Next, Sweep
from fewshot_ray.storage import Folder
from tests.search.synthetic import curve, evaluations, file, finish, open_sweep, outcome, run_job

pytestmark = pytest.mark.usefixtures("light")


def test_a_failed_trial(tmp_path: Path) -> None:
    """Oracle: FAIL with the reason on both sides, no further trial of it, and the sweep goes on."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 3}))
    job = sweep.next_job()
    assert isinstance(job, Job)
    sweep.evaluated(job.id, next(evaluations(job)))
    sweep.failed(job.id, "the denoiser loss is nan at step 3")
    sweep.ended(job.id)
    record = sweep.folder.record(job.id)
    assert record is not None
    assert (record.state, record.error, record.best_step) == ("FAIL", "the denoiser loss is nan at step 3", 2)
    assert sweep.study.study.trials[0].state is TrialState.FAIL
    assert finish(sweep) == ["t0001", "t0002"]
    assert finish(open_sweep(Folder(tmp_path), file(search={"trials": 3}))) == []


@pytest.mark.parametrize("metric", ["holdout_loss", "kid"])
def test_no_finite_objective_is_a_failure(metric: str, tmp_path: Path) -> None:
    """Oracle: Optuna takes no NaN as a value; of several objectives all must be numbers."""
    search = {"trials": 2, "objectives": {"holdout_loss": "min", "kid": "min"}}
    sweep = open_sweep(Folder(tmp_path), file(search=search))
    finish(sweep, lambda job, step: {**curve(job, step), metric: math.nan})
    assert [record.state for record in sweep.folder.trials()] == ["FAIL", "FAIL"]
    assert "finite" in (sweep.folder.trials()[0].error or "")


@pytest.mark.parametrize("alike", [True, False])
def test_where_all_first_trials_fail_alike_the_sweep_ends(alike: bool, tmp_path: Path) -> None:
    """Oracle: preset, plain fine-tuning and three of the sampler's; numbers in the error don't count, another error does."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 12}))
    failed = []
    while isinstance(job := sweep.next_job(), Job) and len(failed) < 8:
        sweep.failed(job.id, f"the denoiser loss is nan at step {len(failed)}" if alike or len(failed) != 2 else "no class", by_values=True)
        sweep.ended(job.id)
        failed.append(job.id)
    assert len(failed) == (5 if alike else 8)
    assert sweep.hopeless == ("all of the first 5 trials failed alike (the denoiser loss is nan at step 0)" if alike else None)
    record = sweep.folder.record("t0004")
    assert record is not None
    assert record.failed_by == "values"
    assert sweep.study.study.trials[4].user_attrs["failed_by"] == "values"


def test_a_lost_worker(tmp_path: Path) -> None:
    """Oracle: a crash with a retry after it leaves no trace, as does a machine that goes; after the last it is FAIL with the reason."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 2, "retries": 1}))
    for retried in (True, False):
        job = sweep.next_job()
        assert isinstance(job, Job)
        sweep.lost(job.id, "MemoryError: first")
        for _ in range(5):
            sweep.lost(job.id, "ActorDiedError: its node has died", Fault.MACHINE_GONE)
        assert sweep.may_go_on(job.id)
        if retried:
            run_job(sweep, job)
        else:
            sweep.lost(job.id, "MemoryError: second")
            assert not sweep.may_go_on(job.id)
            sweep.ended(job.id)
    records = sweep.folder.trials()
    assert [(record.state, record.error) for record in records] == [
        ("COMPLETE", None),
        ("FAIL", "its worker failed (attempt 2, the last): MemoryError: second"),
    ]
    assert records[1].values is None


def test_a_trial_that_its_machines_die_of(tmp_path: Path) -> None:
    """Oracle: not for ever."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 1}))
    job = sweep.next_job()
    assert isinstance(job, Job)
    for number in range(1, 102):
        sweep.lost(job.id, "ActorDiedError: its node has died", Fault.MACHINE_GONE)
        assert sweep.may_go_on(job.id) == (number <= 100)
    sweep.ended(job.id)
    assert [(record.state, record.error) for record in sweep.folder.trials()] == [("FAIL", "it lost 101 machines")]


def lose(sweep: Sweep, job: Job, reason: str, fault: Fault) -> None:
    """Until it is given up."""
    while sweep.may_go_on(job.id):
        sweep.lost(job.id, reason, fault)
    sweep.ended(job.id)


@pytest.mark.parametrize(("fault", "reason"), [(Fault.OUT_OF_MEMORY, "out of memory"), (Fault.UNREACHABLE, "storage s3://x: no answer")])
def test_what_its_machine_kept_from_ending_stays_open(fault: Fault, reason: str, tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep, once it is resumed. Until then the others run, and nothing that depends on all of the search."""
    sections = {"search": {"trials": 3, "retries": 1, "confirm": {"seeds": [7]}}}
    undisturbed = open_sweep(Folder(tmp_path / "a"), file(**sections))
    finish(undisturbed)
    sweep = open_sweep(Folder(tmp_path / "b"), file(**sections))
    first = sweep.next_job()
    assert isinstance(first, Job)
    lose(sweep, first, reason, fault)
    assert sweep.left == {first.id: reason}
    assert finish(sweep) == ["t0001", "t0002"]
    assert not sweep.done
    assert [(record.state, record.error) for record in sweep.folder.trials()] == [
        ("RUNNING", reason),
        ("COMPLETE", None),
        ("COMPLETE", None),
    ]
    resumed = open_sweep(Folder(tmp_path / "b"), file(**sections))
    assert finish(resumed)[0] == first.id
    assert resumed.done
    # The sampler didn't know the first trial's value: what it proposed meanwhile is another matter.
    assert resumed.folder.record(first.id) == replace(
        undisturbed.folder.record(first.id), **{key: getattr(resumed.folder.record(first.id), key) for key in ("started", "ended")}
    )


def test_what_memory_never_holds_fails_in_the_end(tmp_path: Path) -> None:
    """Oracle: a sweep ends. Left open once, run again by `resume`, and then FAIL with the reason and what would have it run again."""
    sections = {"search": {"trials": 2, "retries": 0}}
    for attempt in range(2):
        sweep = open_sweep(Folder(tmp_path), file(**sections))
        job = sweep.next_job()
        assert isinstance(job, Job)
        assert job.id == "t0000"
        lose(sweep, job, "out of memory: on node 192.0.2.2", Fault.OUT_OF_MEMORY)
        assert finish(sweep) == (["t0001"] if attempt == 0 else [])
        assert sweep.done == (attempt == 1)
    record = sweep.folder.record("t0000")
    assert record is not None
    assert record.state == "FAIL"
    assert str(record.error).startswith("its worker failed (attempt 1, the last): out of memory: on node 192.0.2.2; ")
    assert "once trials/t0000 is removed" in str(record.error)
    shutil.rmtree(tmp_path / "trials" / "t0000")
    assert finish(open_sweep(Folder(tmp_path), file(**sections))) == ["t0000"]


def test_a_full_disk_ends_the_sweep(tmp_path: Path) -> None:
    """Oracle: at the first such error nothing more is begun or tried again, nothing has failed, and resumed all is as if undisturbed."""
    undisturbed = open_sweep(Folder(tmp_path / "a"), file())
    finish(undisturbed)
    sweep = open_sweep(Folder(tmp_path / "b"), file(), concurrent=2)
    first, second = sweep.next_job(), sweep.next_job()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    sweep.lost(first.id, "storage /x: cannot write a (No space left on device)", Fault.FULL)
    assert sweep.halted == "storage /x: cannot write a (No space left on device)"
    assert not sweep.may_go_on(first.id)
    sweep.ended(first.id)
    assert sweep.next_job() is Next.WAIT
    sweep.lost(second.id, "storage /x: cannot write b (No space left on device)", Fault.FULL)
    sweep.ended(second.id)
    assert sweep.next_job() is Next.DONE
    assert not sweep.done
    assert "write a" in sweep.halted
    assert [(record.state, record.error) for record in sweep.folder.trials()] == [("RUNNING", None)] * 2
    resumed = open_sweep(Folder(tmp_path / "b"), file())
    assert finish(resumed)[0] == first.id
    assert outcome(resumed) == outcome(undisturbed)


def test_a_trial_that_tune_drops(tmp_path: Path) -> None:
    """Oracle: the undisturbed sweep. A trial that has ended before its last evaluation, for no reason of its own, is begun again."""
    undisturbed = open_sweep(Folder(tmp_path / "a"), file())
    finish(undisturbed)
    sweep = open_sweep(Folder(tmp_path / "b"), file())
    first = sweep.next_job()
    assert isinstance(first, Job)
    sweep.evaluated(first.id, next(evaluations(first)))
    sweep.ended(first.id)
    assert [record.state for record in sweep.folder.trials()] == ["RUNNING"]
    assert finish(sweep)[0] == first.id
    assert outcome(sweep) == outcome(undisturbed)


def test_a_trial_that_is_lost_and_dropped(tmp_path: Path) -> None:
    """Oracle: one loss, of which Tune says two things, is one: a single retry is enough."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 1, "retries": 1}))
    first = sweep.next_job()
    assert isinstance(first, Job)
    sweep.lost(first.id, "ActorDiedError: it waited between two trials")
    sweep.ended(first.id)
    assert finish(sweep) == [first.id]
    assert [record.state for record in sweep.folder.trials()] == ["COMPLETE"]


def test_a_crash_at_the_very_end(tmp_path: Path) -> None:
    """Oracle: all its evaluations are on record; a worker that fails after the last takes nothing from them."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 1, "retries": 0}))
    job = sweep.next_job()
    assert isinstance(job, Job)
    for row in evaluations(job):
        sweep.evaluated(job.id, row)
    sweep.lost(job.id, "MemoryError: after the last")
    sweep.ended(job.id)
    assert [(record.state, record.error) for record in sweep.folder.trials()] == [("COMPLETE", None)]


def test_a_trial_that_is_dropped_every_time(tmp_path: Path) -> None:
    """Oracle: as many tries as for one that crashes."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 1, "retries": 2}))
    tries = 0
    while isinstance(job := sweep.next_job(), Job):
        tries += 1
        assert tries < 10
        sweep.ended(job.id)
    assert tries == 3
    assert [(record.state, record.error) for record in sweep.folder.trials()] == [
        ("FAIL", "its worker failed (attempt 3, the last): its worker ended before the last evaluation")
    ]


def test_closing(tmp_path: Path) -> None:
    """Oracle: nothing is begun, what is lost stays one to go on with, what ends meanwhile has ended; resumed, all is as if undisturbed."""
    undisturbed = open_sweep(Folder(tmp_path / "a"), file())
    finish(undisturbed)
    sweep = open_sweep(Folder(tmp_path / "b"), file(), concurrent=2)
    first, second = sweep.next_job(), sweep.next_job()
    assert isinstance(first, Job)
    assert isinstance(second, Job)
    sweep.closing = True
    assert sweep.next_job() is Next.WAIT
    sweep.lost(first.id, "SavedAndEndedError: saved at step 3", Fault.MACHINE_GONE)
    assert not sweep.may_go_on(first.id)
    sweep.ended(first.id)
    run_job(sweep, second)
    assert sweep.next_job() is Next.DONE
    assert not sweep.done
    assert [record.state for record in sweep.folder.trials()] == ["RUNNING", "COMPLETE"]
    resumed = open_sweep(Folder(tmp_path / "b"), file())
    assert finish(resumed)[0] == first.id
    assert outcome(resumed) == outcome(undisturbed)
