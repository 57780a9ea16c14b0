"""Budgets of a search: what is counted, over resumes too, and what a spent one ends."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fewshot_ray.errors import UserError
from fewshot_ray.report.progress import Progress
from fewshot_ray.search import budget
from fewshot_ray.search.budget import Improvement, Used, gpus_held, in_words, limits, read_sessions, used_before
from fewshot_ray.search.job import Job
from fewshot_ray.search.opened import existing_sweep, planned_sweep, put_on_record
from fewshot_ray.search.sweep import Next, Sweep
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.extension import extended, larger_limits
from fewshot_ray.spec.sections import BudgetSpec
from fewshot_ray.spec.validate import file_spec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.ranking import Ranking
from tests.cluster.conftest import sweep_file
from tests.search import synthetic
from tests.search.synthetic import curve, evaluations, file, finish, open_sweep, run_job

pytestmark = pytest.mark.usefixtures("light")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The budget's clock, in seconds, moved by hand."""
    now = [0.0]
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_limits() -> None:
    """Oracle: by hand."""
    spec = BudgetSpec(hours=3, gpu_hours=20.0, cost={"at_most": 50, "per_node_hour": 2.5}, patience=10)  # type: ignore[arg-type]
    found = limits(spec, Used(hours=1.2, gpu_hours=20.0, node_hours=4.0, unimproved=3))
    assert in_words(found) == ("1.8 of 3 h left, 0 of 20 GPU-hours left, 40 of 50 (cost) left, 7 of 10 trials without improvement left")
    assert [limit.is_reached for limit in found] == [False, True, False, False]
    assert limits(None, Used()) == []


def test_gpus_are_counted_where_trials_hold_them() -> None:
    """Oracle: three trials of one on two GPUs hold two, since one still waits; three of half a one hold one and a half."""
    assert gpus_held([1.0, 1.0, 1.0], 2.0) == 2.0
    assert gpus_held([0.5, 0.5, 0.5], 2.0) == 1.5


@pytest.mark.parametrize(
    ("objectives", "script"),
    [
        ({"kid": "min"}, [((0.5, 0), 0), ((0.6, 0), 1), ((0.5, 0), 2), (None, 3), ((0.4, 0), 0), ((math.nan, 0), 1)]),
        ({"kid": "min", "recall": "max"}, [((0.5, 0.5), 0), ((0.6, 0.6), 0), ((0.6, 0.5), 1), ((0.5, 0.5), 2), ((0.4, 0.1), 0)]),
    ],
)
def test_improvement(objectives: dict[str, Any], script: list[tuple[Any, int]]) -> None:
    """Oracle: by hand; an equal one, a failed one and one behind the front are none, another place on the front is one."""
    improvement = Improvement(Ranking(objectives))
    for values, expected in script:
        record = TrialRecord("t0000", 0, "search", "sampler", "", 0, "FAIL")
        if values is not None:
            record = replace(record, state="COMPLETE", best_step=2, values=dict(zip(("kid", "recall"), values, strict=True)))
        improvement.ended(record)
        assert improvement.trials == expected, values


def test_patience_ends_the_search_and_the_reruns_come(tmp_path: Path) -> None:
    """Oracle: trials that get worse and worse; after the first, three more; a resumed sweep counts the same, a larger limit goes on."""

    def worse(job: Job, step: int) -> dict[str, float]:
        return {**curve(job, step), "holdout_loss": 1.0 + (job.number or 0)}

    def document(patience: int) -> Document:
        return file(search={"trials": 20, "budget": {"patience": patience}, "confirm": {"top": 1, "seeds": [7]}})

    sweep = open_sweep(Folder(tmp_path), document(3))
    first = finish_one(sweep, worse)
    again = open_sweep(Folder(tmp_path), document(3))
    assert [first, *finish(again, worse)] == ["t0000", "t0001", "t0002", "t0003", "confirm-t0000-seed7", "control-t0000-seed7"]
    assert again.done
    assert finish(open_sweep(Folder(tmp_path), document(3)), worse) == []
    assert finish(open_sweep(Folder(tmp_path), document(5)), worse) == ["t0004", "t0005"]


def finish_one(sweep: Sweep, how: synthetic.Curve = curve) -> str:
    job = sweep.next_job()
    assert isinstance(job, Job)
    run_job(sweep, job, how)
    return job.id


def test_a_better_one_of_those_that_still_ran_goes_on(tmp_path: Path) -> None:
    """Oracle: when the limit is reached a trial is running; it ends as the best, so the search isn't over."""

    def last_is_best(job: Job, step: int) -> dict[str, float]:
        return {**curve(job, step), "holdout_loss": 0.1 if job.id == "t0003" else 1.0 + (job.number or 0)}

    document = file(search={"trials": 20, "budget": {"patience": 2}})
    sweep = open_sweep(Folder(tmp_path), document, concurrent=4)
    jobs = [sweep.next_job() for _ in range(4)]
    for job in jobs[:3]:
        assert isinstance(job, Job)
        run_job(sweep, job, last_is_best)
    assert sweep.next_job() is Next.WAIT
    assert isinstance(jobs[3], Job)
    run_job(sweep, jobs[3], last_is_best)
    assert isinstance(sweep.next_job(), Job)


def test_hours_are_counted_over_resumes(tmp_path: Path, clock: list[float]) -> None:
    """Oracle: an hour a trial and a pause of ten; of 2.5 hours the third trial uses the rest, runs to its end, and no fourth begins."""
    document = file(search={"trials": 20, "budget": {"hours": 2.5}})
    began: list[str] = []

    def session(document: Document) -> Sweep:
        sweep = open_sweep(Folder(tmp_path), document)
        while isinstance(job := sweep.next_job(), Job):
            began.append(job.id)
            for row in evaluations(job):
                clock[0] += 3600 / 4
                sweep.evaluated(job.id, row)
            sweep.ended(job.id)
            if len(began) == 2:  # the driver is killed: the last evaluation was put on record
                clock[0] += 36_000
                return sweep
        sweep.abandon()
        return sweep

    session(document)
    assert used_before(SweepFolder(Folder(tmp_path)), Ranking({"holdout_loss": "min"})).hours == pytest.approx(2.0)
    assert session(document).done
    assert began == ["t0000", "t0001", "t0002"]
    assert sum(one.hours for one in read_sessions(Folder(tmp_path))) == pytest.approx(3.0)
    session(file(search={"trials": 20, "budget": {"hours": 4.5}}))
    assert began == ["t0000", "t0001", "t0002", "t0003", "t0004"]


def test_machines_and_gpus_are_counted_while_the_search_runs(tmp_path: Path, clock: list[float]) -> None:
    """Oracle: two trials of one GPU for half an hour on three machines; neither an idle hour nor a rerun's counts."""
    document = file(search={"trials": 2, "confirm": {"top": 1, "seeds": [7]}}, resources={"workers": 2, "gpus_per_worker": 0.5})
    sweep = open_sweep(Folder(tmp_path), document, concurrent=2)
    sweep.budget.nodes, sweep.budget.gpus = 3, 8.0
    clock[0] += 3600
    jobs = [sweep.next_job(), sweep.next_job()]
    clock[0] += 1800
    for job in jobs:
        assert isinstance(job, Job)
        run_job(sweep, job)
    rerun = sweep.next_job()
    assert isinstance(rerun, Job)
    clock[0] += 3600
    run_job(sweep, rerun)
    sweep.abandon()
    (session,) = read_sessions(Folder(tmp_path))
    assert (session.hours, session.gpu_hours, session.node_hours) == (0.5, 1.0, 1.5)


def test_what_is_left_is_said(tmp_path: Path, clock: list[float]) -> None:
    """Oracle: at the start, at the end of a trial in place of an estimate from their number, and when it is spent."""
    document = file(search={"trials": 20, "budget": {"hours": 1}})
    out = io.StringIO()
    sweep = open_sweep(Folder(tmp_path), document)
    sweep.progress = sweep.budget.progress = Progress(8, ranking=sweep.ranking, console=Console(file=out, width=200))
    sweep.progress.add_trials(20)
    while isinstance(job := sweep.next_job(), Job):
        clock[0] += 1500
        run_job(sweep, job)
    lines = out.getvalue().splitlines()
    assert any(line.endswith("[1/20 trials, 0.583 of 1 h left]") for line in lines)
    assert any("the search ends without 17 of its trials: 0 of 1 h left" in line for line in lines)
    start = io.StringIO()
    again = Progress(8, ranking=sweep.ranking, console=Console(file=start, width=200))
    budget.Budget(sweep.file, sweep.folder, {}, again)
    assert "budget of the search: " in start.getvalue()


@pytest.mark.parametrize(
    ("search", "resources", "message"),
    [
        ({"budget": {"hours": 0}}, {}, r"search\.budget\.hours: 0 is too small; a number above 0"),
        ({"budget": {"gpu_hours": -1.0}}, {}, r"search\.budget\.gpu_hours: -1.0 is too small"),
        ({"budget": {"cost": {"at_most": 0, "per_node_hour": 1}}}, {}, r"search\.budget\.cost\.at_most: 0 is too small"),
        ({"budget": {"cost": {"at_most": 5}}}, {}, r"search\.budget\.cost\.per_node_hour: is missing"),
        ({"budget": {"patience": 0}}, {}, r"search\.budget\.patience: 0 is too small"),
        ({"budget": {}}, {}, r"search\.budget: no limit is given; one or several of hours, gpu_hours, cost and patience"),
        ({"budget": {"trials": 9}}, {}, r"search\.budget\.trials: .*did you mean `search: \{trials: 9\}`"),
        ({"budget": {"hours": 1}, "trials": 1}, {}, r"search\.trials: one trial, .* say 1000, is right"),
        ({"budget": {"patience": 5}}, {}, r"search\.budget\.patience: 5 is not below search\.trials \(5\)"),
        ({"budget": {"gpu_hours": 1}}, {}, r"search\.budget\.gpu_hours: trials have no GPU .* hours is right"),
    ],
)
def test_bad_budgets(search: dict[str, Any], resources: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        file_spec(file(search=search, resources=resources))


def test_larger_limits() -> None:
    """Oracle: by hand."""
    tree = {"search": {"trials": 8, "budget": {"hours": 2, "cost": {"at_most": 5, "per_node_hour": 1}}}}
    limits = larger_limits(["trials=9", "hours=2.5", "cost=7"])
    assert limits == {"trials": 9, "hours": 2.5, "cost": 7.0}
    assert extended(tree, limits) == {"search": {"trials": 9, "budget": {"hours": 2.5, "cost": {"at_most": 7.0, "per_node_hour": 1}}}}
    assert extended({}, {"trials": 3}) == {"search": {"trials": 3}}
    for option in ("trials=many", "trials=2.5", "hours=0", "hours=nan", "days=3", "hours"):
        with pytest.raises(UserError, match=r"--extend .*: NAME=N would be right, NAME one of trials, hours, "):
            larger_limits([option])
    with pytest.raises(UserError, match=r"--extend hours=1: the sweep has 2 already; more would be right"):
        extended(tree, {"hours": 1.0})
    with pytest.raises(UserError, match=r"--extend patience=4: the sweep has no search\.budget\.patience"):
        extended(tree, {"patience": 4})


def test_a_budget_may_change_in_the_file(tmp_path: Path) -> None:
    """Oracle: the file as it is now; no result depends on it."""
    document = sweep_file("begun", tmp_path)
    opened = put_on_record(planned_sweep(document))
    opened.folder.folder.write_text("study.journal", "")
    tree = {**document.tree, "search": {**document.tree["search"], "budget": {"hours": 1.0, "patience": 2}}}
    put_on_record(planned_sweep(replace(document, tree=tree)))
    assert existing_sweep(opened.folder.folder).file.search.budget == BudgetSpec(hours=1.0, patience=2)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"started": "a"}]', json.dumps([{"started": "", "ended": "", "hours": -1}])])
def test_a_damaged_record_of_sessions(text: str, tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write_text("sessions.json", text)
    with pytest.raises(UserError, match=r"sessions\.json: no record of a driver's sessions; without the file"):
        read_sessions(folder)
