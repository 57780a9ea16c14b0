"""The sweep's state machine: order, stops, failures, what follows the search, and resuming from any point."""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from fewshot_ray.search.faults import Fault
from fewshot_ray.search.job import Job
from fewshot_ray.search.sweep import Next, Sweep
from fewshot_ray.search.sweep_folder import SweepFolder, read_spec
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.document import Document, value_at
from fewshot_ray.spec.ranges import Choice, IntRange
from fewshot_ray.storage import Folder
from tests.search import synthetic
from tests.search.synthetic import ASHA, curve, evaluations, file, finish, open_sweep, outcome, run_job

FULL = {"trials": 5, "scheduler": ASHA, "confirm": {"top": 2, "seeds": [7, 8]}}
CROSSFIT = {"images": "embedded://digits/shots", "shots": 4, "holdout": {"crossfit": 2}}


class NoBoards:
    """TensorBoard's events have tests of their own."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "Boards", NoBoards)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def origins(sweep: Sweep) -> list[str]:
    return [record.origin for record in sweep.folder.trials() if record.kind == "search"]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, ["preset", "plain", "sampler", "sampler", "sampler"]),
        ({"search": {"include_preset": False}}, ["plain", "sampler", "sampler", "sampler", "sampler"]),
        ({"search": {"include_plain": False}}, ["preset", "sampler", "sampler", "sampler", "sampler"]),
        ({"search": {"trials": 1}}, ["preset"]),
        ({"method": {"finetune": {}}, "search": {"trials": 3}}, ["plain", "sampler", "sampler"]),
        ({"method": {"finetune": {}}, "train": {"lr": 1e-3, "params": "full"}}, ["plain"]),
        ({"method": {"sdft": {}}, "train": {"lr": 1e-3, "params": "full"}}, ["file", "plain"]),
        ({"method": {"sdft": {}}, "train": {"lr": 1e-3, "params": "full"}, "search": {"trials": 1}}, ["file"]),
    ],
)
def test_order_of_trials(sections: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    """Oracle: the preset, plain fine-tuning, then the sampler; without ranges there is nothing to propose."""
    sweep = open_sweep(Folder(tmp_path), file(**sections))
    assert finish(sweep) == [f"t{number:04d}" for number in range(len(expected))]
    assert origins(sweep) == expected
    assert sweep.done


def test_preset_and_plain(tmp_path: Path) -> None:
    """Oracle: both at the file's `train` values (a range's middle where the default is outside), plain without the methods."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 2}))
    preset, plain = (sweep.folder.record(id) for _ in range(2) if (id := finish_one(sweep)))
    assert preset is not None
    assert plain is not None
    assert preset.params["train.lr"] == plain.params["train.lr"] == pytest.approx(1e-3)
    assert "method.ant.noise_steps" in preset.params
    assert set(plain.params) == {"train.lr", "train.params"}
    assert "finetune" in sweep.folder.trial(plain.id).read_text("spec.yaml")


def finish_one(sweep: Sweep) -> str:
    job = sweep.next_job()
    assert isinstance(job, Job)
    run_job(sweep, job)
    return job.id


def test_values_are_the_best_evaluation(tmp_path: Path) -> None:
    """Oracle: the least held-out loss of the rows on record, its step and all its metrics."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 3}))
    finish(sweep)
    for record in sweep.folder.trials():
        best = min(sweep.folder.rows(record.id), key=lambda row: row.metrics["holdout_loss"])
        assert (record.best_step, record.values) == (best.step, best.metrics)
        assert record.state == "COMPLETE"
        told = sweep.study.study.trials[record.number or 0]
        assert (told.state, told.values) == (TrialState.COMPLETE, [best.metrics["holdout_loss"]])
        assert record.train_sec == 8 * 4 / 40.0


def test_seconds_of_training_follow_the_trials_own_batch(tmp_path: Path) -> None:
    """Oracle: steps x images a step / images a second."""
    sweep = open_sweep(Folder(tmp_path), file(train={"batch_size": Choice((4, 8))}, search={"trials": 6}))
    finish(sweep)
    records = sweep.folder.trials()
    assert {record.params["train.batch_size"] for record in records} == {4, 8}
    assert all(record.train_sec == pytest.approx(8 * record.params["train.batch_size"] / 40.0) for record in records)


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


def counts(sweep: Sweep) -> list[str]:
    """What the lines of trials that ended say of the sweep."""
    stream = sweep.progress._console.file
    assert isinstance(stream, io.StringIO)
    return re.findall(r"\[(\d+/\d+) trials", stream.getvalue())


def test_trials_are_counted_over_interruptions_and_extensions(tmp_path: Path) -> None:
    """Oracle: by hand. Reruns count once it is known whose they are; those of a trial that has been beaten since don't count any more."""
    search = {"confirm": {"seeds": [7]}, "scheduler": None, "include_plain": False}
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 3, **search}))
    for job in (finish_one(sweep), sweep.next_job()):
        if isinstance(job, Job):  # killed after the last row, before the record of its end
            for row in evaluations(job):
                sweep.evaluated(job.id, row)
    assert counts(sweep) == ["1/3"]
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 3, **search}))
    assert len(finish(sweep)) == 3
    assert counts(sweep) == ["3/3", "4/5", "5/5"]
    winner = exported_trial(sweep.folder, sweep.file).id
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 5, **search}))
    assert finish(sweep)[:2] == ["t0003", "t0004"]
    beaten = exported_trial(sweep.folder, sweep.file).id != winner
    assert counts(sweep) == ["4/5", "5/5"] + ["6/7", "7/7"] * beaten


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


@pytest.mark.parametrize("metric", ["holdout_loss", "kid"])
def test_no_finite_objective_is_a_failure(metric: str, tmp_path: Path) -> None:
    """Oracle: Optuna takes no NaN as a value; of several objectives all must be numbers."""
    search = {"trials": 2, "objectives": {"holdout_loss": "min", "kid": "min"}}
    sweep = open_sweep(Folder(tmp_path), file(search=search))
    finish(sweep, lambda job, step: {**curve(job, step), metric: math.nan})
    assert [record.state for record in sweep.folder.trials()] == ["FAIL", "FAIL"]
    assert "finite" in (sweep.folder.trials()[0].error or "")


def test_an_evaluation_on_record_is_passed_over(tmp_path: Path) -> None:
    """Oracle: a retried trial reports its history again; the rows stay one a step."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 1}))
    job = sweep.next_job()
    assert isinstance(job, Job)
    rows = list(evaluations(job))
    for row in [*rows[:2], *rows]:
        assert not sweep.evaluated(job.id, row)
    sweep.ended(job.id)
    assert [row.step for row in sweep.folder.rows(job.id)] == [2, 4, 6, 8]


def test_concurrency(tmp_path: Path) -> None:
    """Oracle: never more than two at a time, and nothing after the search before all of it has ended."""
    search = {"trials": 3, "confirm": {"seeds": [7]}, "include_plain": False}
    sweep = open_sweep(Folder(tmp_path), file(search=search), concurrent=2)
    a, b = sweep.next_job(), sweep.next_job()
    assert isinstance(a, Job)
    assert isinstance(b, Job)
    assert sweep.next_job() is Next.WAIT
    run_job(sweep, a)
    c = sweep.next_job()
    assert isinstance(c, Job)
    run_job(sweep, b)
    assert sweep.next_job() is Next.WAIT
    run_job(sweep, c)
    d, e = sweep.next_job(), sweep.next_job()
    assert isinstance(d, Job)
    assert isinstance(e, Job)
    assert {d.kind, e.kind} == {"confirm", "control"}
    run_job(sweep, d)
    assert sweep.next_job() is Next.WAIT
    assert not sweep.done
    run_job(sweep, e)
    assert sweep.next_job() is Next.DONE


def test_waiting_asks_the_folder_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: Tune asks many times a second; a folder on S3 must not be read for each."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 1, "confirm": {"seeds": [7]}}), concurrent=3)
    run_job(sweep, sweep.next_job())  # type: ignore[arg-type]
    jobs = [sweep.next_job(), sweep.next_job()]
    assert all(isinstance(job, Job) for job in jobs)
    monkeypatch.setattr(Folder, "read_bytes", lambda *args: pytest.fail("reads"))
    monkeypatch.setattr(Folder, "names", lambda *args: pytest.fail("lists"))
    assert sweep.next_job() is Next.WAIT


def test_after_the_search(tmp_path: Path) -> None:
    """Oracle: both of the best on the first seed; then both arms of the better one on the others, and its refit, at its best step."""
    document = file(target=CROSSFIT, search={**FULL, "confirm": {"top": 2, "seeds": [7, 8, 9]}})
    sweep = open_sweep(Folder(tmp_path), document)
    ids = finish(sweep)
    complete = [record for record in sweep.folder.trials() if record.kind == "search" and record.state == "COMPLETE"]
    top = sorted(complete, key=lambda record: record.values["holdout_loss"] if record.values else math.inf)[:2]
    choosing = {record.id: sweep.folder.record(f"confirm-{record.id}-seed7") for record in top}
    means = {one: rerun.values["holdout_loss"] for one, rerun in choosing.items() if rerun and rerun.values}
    winner = min(top, key=lambda record: means[record.id])
    arms = ("confirm", "control") if winner.origin != "plain" else ("confirm",)
    reporting = [f"{arm}-{winner.id}-seed{seed}" for seed in (8, 9) for arm in arms]
    assert ids[5:] == [*(f"confirm-{record.id}-seed7" for record in top), *reporting, f"refit-{winner.id}"]
    refit = sweep.folder.record(ids[-1])
    assert refit is not None
    assert (refit.state, refit.best_step, refit.values) == ("COMPLETE", winner.best_step, {})
    assert max(row.step for row in sweep.folder.rows(ids[-1])) == winner.best_step


def test_what_is_shown_of_a_trial_is_in_its_own_spec(tmp_path: Path) -> None:
    """Oracle: the trial's `spec.yaml`: a control has the winner's `train` and none of the methods' settings."""
    search = {"trials": 6, "confirm": {"top": 2, "seeds": [7, 8]}, "include_plain": False}
    sweep = open_sweep(Folder(tmp_path), file(target=CROSSFIT, search=search))
    finish(sweep)
    records = sweep.folder.trials()
    assert {record.kind for record in records} == {"search", "confirm", "control", "refit"}
    for record in records:
        tree = read_spec(sweep.folder.trial(record.id)).tree
        searched = {path for path in sweep.study.space.by_name if path.startswith("train.") or "ant" in tree["method"]}
        assert dict(record.params) == {path: value_at(tree, path) for path in searched}, record.id


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


SMALL = {"ant": {"noise_steps": IntRange(1, 2), "noise_norm": Choice(("moments", "sample"))}}
"""Four configurations, and plain fine-tuning."""


def small(trials: int, **search: Any) -> Document:
    return file(method=SMALL, train={"lr": 1e-3, "params": "full"}, search={"trials": trials, **search})


@pytest.mark.parametrize(("trials", "expected"), [(4, 4), (23, 5)])
def test_no_configuration_is_trained_twice(trials: int, expected: int, tmp_path: Path) -> None:
    """Oracle: as many different specs as trials; where there are no more, the search ends with those there are, and is done."""
    sweep = open_sweep(Folder(tmp_path), small(trials))
    assert len(finish(sweep)) == expected
    specs = {sweep.folder.trial(record.id).read_text("spec.yaml") for record in sweep.folder.trials()}
    assert len(specs) == len(sweep.folder.trials()) == expected
    assert sweep.done
    study = sweep.study.study.get_trials()
    assert len(study) > expected or trials == 4
    assert all(trial.state.is_finished() for trial in study)
    assert finish(open_sweep(Folder(tmp_path), small(trials))) == []


class Killed(BaseException):
    """The driver's process ends here."""


class Killer:
    """Counts what is written to the folder and the journal, and ends the driver at the k-th: in its midst or after it."""

    def __init__(self, at: int | None, when: str) -> None:
        self.at, self.when, self.count = at, when, 0

    def write(self, whole: Callable[[], Any], torn: Callable[[], Any]) -> None:
        self.count += 1
        if self.count != self.at:
            whole()
            return
        if self.when == "torn":
            torn()
        else:
            whole()
        raise Killed

    def install(self, patch: pytest.MonkeyPatch) -> None:
        write_bytes, append_row, append_logs = Folder.write_bytes, SweepFolder.append_row, JournalFileBackend.append_logs

        def on_write(folder: Folder, name: str, content: bytes) -> None:
            # A write appears whole or not at all; what a kill leaves is the temporary file.
            self.write(lambda: write_bytes(folder, name, content), lambda: write_bytes(folder, f".{name}.0", content[:3]))

        def on_row(folder: SweepFolder, trial_id: str, row: Any) -> None:
            place = folder.trial(trial_id).local

            def torn() -> None:
                append_row(folder, trial_id, row)
                assert place is not None
                _cut(place / "metrics.jsonl")

            if place is None:
                append_row(folder, trial_id, row)
            else:
                self.write(lambda: append_row(folder, trial_id, row), torn)

        def on_logs(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            def torn() -> None:
                append_logs(backend, logs)
                _cut(Path(backend._file_path))

            self.write(lambda: append_logs(backend, logs), torn)

        patch.setattr(Folder, "write_bytes", on_write)
        patch.setattr(SweepFolder, "append_row", on_row)
        patch.setattr(JournalFileBackend, "append_logs", on_logs)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


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


def killed(folder: Folder, document: Document, killer: Killer, made: Callable[[Job, int], dict[str, float]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        killer.install(patch)
        with pytest.raises(Killed):
            finish(open_sweep(folder, document), made)


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
