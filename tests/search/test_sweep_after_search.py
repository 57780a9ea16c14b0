"""What follows a sweep's search: reruns with their controls, and the refit."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path

import pytest

from fewshot_ray.search.job import Job
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.sweep_folder import read_spec
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.document import value_at
from fewshot_ray.storage import Folder
from tests.search.synthetic import CROSSFIT, FULL, evaluations, file, finish, finish_one, open_sweep

pytestmark = pytest.mark.usefixtures("light")


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
