"""The sweep's state machine: the order of trials, what is recorded of them, and what is next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from fewshot_ray.search.job import Job
from fewshot_ray.search.sweep import Next, Sweep
from fewshot_ray.spec.ranges import Choice
from fewshot_ray.storage import Folder
from tests.search.synthetic import evaluations, file, finish, finish_one, open_sweep, run_job, small

pytestmark = pytest.mark.usefixtures("light")


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
