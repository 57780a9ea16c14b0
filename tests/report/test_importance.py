"""Importances of the searched values: what they rest on, and where nothing is said."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from fewshot_ray.cli.show import show_sweep
from fewshot_ray.report.importance import FEWEST_TRIALS, Importance, importances
from fewshot_ray.report.page import report_page
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord, sweep_text
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range
from fewshot_ray.spec.sections import FileSpec, SearchSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document
from tests.search.synthetic import file

BOTH = SearchSpec(objectives={"holdout_loss": "min", "kid": "max"})
RANGES: dict[str, Range] = {
    "train.lr": FloatRange(1e-4, 1e-2, log=True),
    "train.params": Choice(("full", {"lora": {"rank": 2}})),
    "method.ant.noise_steps": IntRange(1, 9),
}


def made(place: Path, count: int, **changed: object) -> SweepFolder:
    """Trials whose held-out loss is the learning rate's alone, and whose KID is the noise steps'."""
    sweep, draw = SweepFolder(Folder(place)), random.Random(0)
    for number in range(count):
        lr, steps = 10 ** draw.uniform(-4, -2), draw.randint(1, 9)
        params = {"train.lr": lr, "train.params": draw.choice(RANGES["train.params"].values), "method.ant.noise_steps": steps}  # type: ignore[union-attr]
        values = {"holdout_loss": abs(lr - 1e-3), "kid": float(steps)}
        state = "COMPLETE" if number % 2 else "PRUNED"
        sweep.write_trial(TrialRecord(f"t{number:04d}", number, "search", "sampler", "x", 0, state, params, 8, values))  # type: ignore[arg-type]
    return sweep


def found(sweep: SweepFolder, search: SearchSpec = BOTH) -> list[Importance]:
    return importances(leaderboard(sweep, search), RANGES, search.objectives)


def test_what_matters_for_each_objective(tmp_path: Path) -> None:
    """Oracle: by construction the learning rate alone decides one objective, and the noise steps the other, of which more is better."""
    loss, kid = found(made(tmp_path, 60))
    assert (loss.metric, kid.metric, loss.trials) == ("holdout_loss", "kid", 60)
    assert (next(iter(loss.shares)), next(iter(kid.shares))) == ("train.lr", "method.ant.noise_steps")
    for one in (loss, kid):
        assert sum(one.shares.values()) == pytest.approx(1)
        assert set(one.shares) == set(RANGES)
        assert max(one.shares.values()) > 0.6
    assert re.match(r"importance for holdout_loss \(PED-ANOVA, 60 trials\): train\.lr \d+ %, ", loss.describe())


def test_nothing_is_said_of_little(tmp_path: Path) -> None:
    """Oracle: the least number of trials, of which those without a value and plain fine-tuning beside methods are none; two values."""
    sweep = made(tmp_path, FEWEST_TRIALS)
    assert found(sweep)
    assert importances(leaderboard(sweep, BOTH), {"train.lr": RANGES["train.lr"]}, BOTH.objectives) == []
    for other in ({"origin": "plain"}, {"state": "FAIL"}, {"values": {"holdout_loss": float("nan"), "kid": 1.0}}):
        first = sweep.trials()[0]
        sweep.write_trial(TrialRecord(**{**vars(first), **other}))
        assert found(sweep) == []
        sweep.write_trial(first)


def test_a_value_that_some_trials_lack(tmp_path: Path) -> None:
    """Oracle: what all have is still found (of a conditional space each trial has its own part)."""
    sweep = made(tmp_path, 60)
    for trial in sweep.trials()[::2]:
        params = {path: value for path, value in trial.params.items() if not path.startswith("method.")}
        sweep.write_trial(TrialRecord(**{**vars(trial), "params": params}))
    (loss, _) = found(sweep)
    assert next(iter(loss.shares)) == "train.lr"


def test_page_and_leaderboard_say_it(tmp_path: Path) -> None:
    """Oracle: the same shares; a page of few trials has no such part."""
    document, spec = shown()
    sweep = made(tmp_path / "many", 30)
    sweep.folder.write_text("spec.yaml", sweep_text(document))
    html = report_page(sweep, spec.search)
    assert "Importance of the searched values" in html
    console = Console(file=io.StringIO(), width=200)
    show_sweep(sweep, spec, console)
    assert "importance for holdout_loss (PED-ANOVA, 30 trials): train.lr" in console.file.getvalue()  # type: ignore[attr-defined]
    few = made(tmp_path / "few", 5)
    few.folder.write_text("spec.yaml", sweep_text(document))
    assert "Importance of" not in report_page(few, spec.search)


def shown() -> tuple[Document, FileSpec]:
    return check_document(file())
