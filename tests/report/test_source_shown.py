"""The source model beside the trials: table, CSV, page, TensorBoard, and the line that compares the result with it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import scipy.stats
from rich.console import Console

from fewshot_ray.report.page import report_page
from fewshot_ray.report.tables import leaderboard_view, to_csv
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.search.against_source import against_source, source_lines
from fewshot_ray.search.leaderboard import LeaderboardRow, leaderboard
from fewshot_ray.search.source_record import put_source_on_record
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder, TrialRecord
from fewshot_ray.spec.sections import ConfirmSpec, FileSpec, SearchSpec
from tests.report.conftest import png
from tests.report.test_page import outline
from tests.report.test_tensorboard import events

SEARCH = SearchSpec(objectives={"holdout_loss": "min"}, confirm=ConfirmSpec(seeds=[1, 2, 3]))
FILE = FileSpec.model_construct(seed=0)
SOURCE = {
    "holdout_loss": 0.25,
    "kid": 0.5,
    "relative_loss": 1.0,
    "relative_content": 1.0,
    "relative_coarse": 1.0,
    "relative_cleanup": 1.0,
    "loss_content": 0.3,
}


def measured(sweep: SweepFolder, **metrics: float) -> EvaluationRow:
    """The source on record, with a picture."""
    sweep.write_grid("source", 0, png(0))
    return put_source_on_record(sweep, FILE, {"metrics": {**SOURCE, **metrics}, "image_losses": [], "by_image": {}}, started_sec=1.7e9)


def test_the_table_and_the_csv_have_it_below_the_search_without_a_rank(sweep: SweepFolder) -> None:
    """Oracle: the text itself; nothing else has changed."""
    before = leaderboard(sweep, SEARCH)
    measured(sweep)
    rows = leaderboard(sweep, SEARCH)
    assert [row for row in rows if row.trial.kind != "source"] == before
    lines = list(csv.DictReader(io.StringIO(to_csv(rows, SEARCH.objectives))))
    (line,) = [line for line in lines if line["kind"] == "source"]
    assert (line["rank"], line["id"], line["state"], line["best_step"], line["holdout_loss"]) == ("", "source", "COMPLETE", "0", "0.25")
    assert lines.index(line) == 14
    shown = Console(file=io.StringIO(), width=100)
    shown.print(leaderboard_view(rows, SEARCH, width=100))
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    assert [one.split() for one in text.splitlines() if one.split()[:1] == ["source"]] == [
        ["source", "source", "complete", "0", "0.2500", "0.5000", "1.000"]
    ]
    assert "relative_coarse" not in text
    assert "0.25: better by 32 %, with a noise that isn't known" in " ".join(text.split())


def test_the_page_begins_curves_and_samples_with_it(sweep: SweepFolder) -> None:
    """Oracle: a grid more than without, and step 0 at the head of every trial's curve; it isn't counted as a trial."""
    before = outline(report_page(sweep, SEARCH))
    measured(sweep)
    html = report_page(sweep, SEARCH)
    page = outline(html)
    assert len(page.images) == len(before.images) + 2  # beside the winner's, and the refit's
    assert page.text.count("the source model") == 2
    counts = [text for text in page.text if "trials:" in text]
    assert counts == [text for text in before.text if "trials:" in text]
    curves = html.split("<h2>Learning curves</h2>")[1].split("<h2>Searched")[0]
    assert curves.count('"x":[0,40,') == 3 * 20  # the trials with evaluations, by two metrics and the training loss
    assert '"x":[40,' not in curves
    assert "Losses by noise level" not in page.text  # the trials of this folder have none


def test_the_page_has_the_bands_of_the_winner(sweep: SweepFolder) -> None:
    """Oracle: three curves, which begin at 1."""
    measured(sweep)
    best = leaderboard(sweep, SEARCH)[0].trial.id
    rows = [
        replace(row, metrics={**row.metrics, **dict.fromkeys(("relative_coarse", "relative_content", "relative_cleanup"), 0.5)})
        for row in sweep.rows(best)
    ]
    (Path(sweep.trial(best).url) / "metrics.jsonl").unlink()
    for row in rows:
        sweep.append_row(best, row)
    html = report_page(sweep, SEARCH)
    assert "Losses by noise level" in html
    for band in ("coarse", "content", "cleanup"):
        assert f'"name":"{band}, {best}"' in html


def test_tensorboard_has_a_run_of_it_and_begins_each_trial_with_it(tmp_path: Path, sweep: SweepFolder) -> None:
    """Oracle: TensorBoard's own reader; bands stand below `bands/`, and nothing of a training at step 0."""
    measured(sweep)
    boards = Boards(sweep)
    row = sweep.rows("t0000")[0]
    for trial in ("t0000", "t0001"):
        boards.begin(trial, {})
        boards.show(trial, replace(row, metrics={"holdout_loss": 0.2, "relative_content": 0.9}))
        boards.end(trial)
    source, trial = events(Path(sweep.trial("source").url)), events(Path(sweep.trial("t0001").url))
    assert [(one.step, one.value) for one in source.Scalars("holdout_loss")] == [(0, 0.25)]
    assert not [tag for tag in source.Tags()["scalars"] if tag.startswith("train/")]
    assert [image.step for image in source.Images("samples")] == [0]
    assert [(one.step, round(one.value, 6)) for one in trial.Scalars("bands/relative_content")] == [(0, 1.0), (40, 0.9)]
    assert [one.step for one in trial.Scalars("train/loss")] == [40]
    assert [image.step for image in trial.Images("samples")] == [0, 40]


def rows(ours: dict[str, float], theirs: dict[str, float], images: tuple[Any, Any] = ((), ())) -> list[LeaderboardRow]:
    """The result and the source."""
    made = []
    for values, kind, own in ((ours, "search", images[0]), (theirs, "source", images[1])):
        record = TrialRecord("t0000" if kind == "search" else "source", None, kind, "sampler", "", 0, "COMPLETE", {}, 40, values)  # type: ignore[arg-type]
        won = kind == "search"
        made.append(LeaderboardRow(record, 1 if won else None, won, True, 40 if won else 0, values, won=won, images=own))
    return made


def test_better_is_said_by_the_paired_test_over_images() -> None:
    """Oracle: scipy's one-sided paired t-test, on both sides of .05."""
    theirs = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2]
    for gain in (0.001, 0.05):
        ours = [value - gain * weight for value, weight in zip(theirs, (1, -1, 3, 2, 0.5, 1), strict=True)]
        values = [math.fsum(side) / 6 for side in (ours, theirs)]
        found = against_source(rows({"holdout_loss": values[0]}, {"holdout_loss": values[1]}, (ours, theirs)), SEARCH)
        assert found is not None
        assert found.shown == (scipy.stats.ttest_rel(theirs, ours, alternative="greater").pvalue <= 0.05)
    noisy = [value + (0.3 if index % 2 else -0.31) for index, value in enumerate(theirs)]
    found = against_source(rows({"holdout_loss": 1.02}, {"holdout_loss": 1.03}, (noisy, theirs)), SEARCH)
    assert found is not None
    assert found.shown is False
    assert found.describe() == (
        "t0000, holdout_loss: 1.02 against the source model's 1.03: not shown to be better (paired over 6 held-out images); "
        "a higher train.lr, more train.steps or another objective is right"
    )


def test_a_metric_of_samples_is_compared_by_its_standard_errors() -> None:
    """Oracle: by hand, a difference of 2 standard errors and of 1; without any the value alone is known."""
    search = SearchSpec(objectives={"kid": "min"})
    for ours, shown in ((1.0, True), (2.0, False)):
        found = against_source(rows({"kid": ours, "kid_stderr": 0.6}, {"kid": 3.0, "kid_stderr": 0.8}), search)
        assert found is not None
        assert found.shown is shown
        assert found.how == " (by their standard errors)"
    maximise = SearchSpec(objectives={"coverage": "max"})
    for ours, shown in ((0.5, None), (0.4, False), (0.3, False)):
        found = against_source(rows({"coverage": ours}, {"coverage": 0.4}), maximise)
        assert found is not None
        assert found.shown is shown


def test_samples_that_are_the_sources_are_said_to_be() -> None:
    """Oracle: by hand; a result that is better but hasn't moved is told what to do, and one that has moved isn't."""
    (line,) = source_lines(rows({"holdout_loss": 0.9, "drift": 0.1}, {"holdout_loss": 1.0}, ([0.9] * 6, [1.0] * 6)), SEARCH)
    assert line.startswith(
        "t0000, holdout_loss: 0.9 against the source model's 1: better by 10 % (paired over 6 held-out images), but its samples are"
    )
    assert line.endswith("a higher train.lr, more train.steps or another objective is right")
    (line,) = source_lines(rows({"holdout_loss": 0.9, "drift": 0.8}, {"holdout_loss": 1.0}, ([0.9] * 6, [1.0] * 6)), SEARCH)
    assert line == "t0000, holdout_loss: 0.9 against the source model's 1: better by 10 % (paired over 6 held-out images)"
    assert source_lines(rows({"holdout_loss": 0.9}, {"holdout_loss": 1.0})[:1], SEARCH) == []
    assert source_lines(rows({"holdout_loss": 0.9}, {"holdout_loss": math.nan}), SEARCH) == []
