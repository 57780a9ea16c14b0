"""Order, ranks, constraints, the CSV, and the paired comparison with the control."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import scipy.stats
from rich.console import Console

from fewshot_ray.report.tables import leaderboard_view, to_csv, write_csv
from fewshot_ray.search.confirmation import compare_with_control, confirmation_lines, selection_bias
from fewshot_ray.search.leaderboard import LeaderboardRow, leaderboard, winner
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder, TrialRecord
from fewshot_ray.spec.sections import ConfirmSpec, SearchSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.ranking import Objectives

LOSS: Objectives = {"holdout_loss": "min"}
BOTH: Objectives = {"kid": "min", "spread": "max"}
BOUND = {"memorisation": "<= 0.2"}
CONFIRM = ConfirmSpec(seeds=list(range(10)))
SEARCH = SearchSpec(objectives=LOSS, confirm=CONFIRM)
MAXIMISE = SearchSpec(objectives={"holdout_loss": "max"}, confirm=CONFIRM)


def complete(sweep: SweepFolder, number: int, **values: float) -> None:
    sweep.write_trial(TrialRecord(f"t{number:04d}", number, "search", "sampler", "ant", 0, "COMPLETE", {}, 40, values))


def ids(rows: list[LeaderboardRow]) -> list[str]:
    return [row.trial.id for row in rows]


def test_order_is_kind_then_state_then_merit(sweep: SweepFolder) -> None:
    """Oracle: the rows' own definition, sorted anew from the raw evaluations."""
    rows = leaderboard(sweep, SEARCH)
    kinds = [row.trial.kind for row in rows]
    assert kinds == ["search"] * 14 + ["confirm"] * 3 + ["control"] * 3 + ["refit"]
    assert [row.trial.state for row in rows[:14]] == ["COMPLETE"] * 9 + ["RUNNING"] + ["PRUNED"] * 3 + ["FAIL"]
    assert [row.rank for row in rows] == [*range(1, 10), *[None] * 12]
    best = {row.trial.id: min(e.metrics["holdout_loss"] for e in sweep.rows(row.trial.id)) for row in rows[:9]}
    assert ids(rows[:9]) == sorted(best, key=best.__getitem__)
    assert [row.values["holdout_loss"] for row in rows[:9]] == sorted(best.values())


def test_a_pruned_trial_never_wins_and_a_running_one_shows_its_best_so_far(sweep: SweepFolder) -> None:
    sweep.write_trial(TrialRecord("t0099", 99, "search", "sampler", "lucky", 0, "PRUNED", {}, 40, {"holdout_loss": 0.0}))
    rows = leaderboard(sweep, SEARCH)
    best = winner(rows)
    assert best is not None
    assert best.trial.state == "COMPLETE"
    running = next(row for row in rows if row.trial.id == "t0013")
    assert running.values["holdout_loss"] == min(e.metrics["holdout_loss"] for e in sweep.rows("t0013"))


def test_several_objectives_rank_by_pareto_front(tmp_path: Path) -> None:
    """Oracle: by hand. a and c are not dominated; b is by c, d by all."""
    sweep = SweepFolder(Folder(tmp_path))
    for number, (kid, spread) in enumerate([(0.1, 1.0), (0.3, 2.0), (0.2, 3.0), (0.4, 0.5)]):
        complete(sweep, number, kid=kid, spread=spread)
    rows = leaderboard(sweep, SearchSpec(objectives=BOTH))
    assert ids(rows) == ["t0000", "t0002", "t0001", "t0003"]
    assert [row.front for row in rows] == [True, True, False, False]


def test_a_trial_outside_the_constraints_ranks_behind(tmp_path: Path) -> None:
    sweep = SweepFolder(Folder(tmp_path))
    complete(sweep, 0, holdout_loss=0.1, memorisation=0.5)
    complete(sweep, 1, holdout_loss=0.2, memorisation=0.2)
    complete(sweep, 2, holdout_loss=0.05)
    rows = leaderboard(sweep, SearchSpec(objectives=LOSS, constraints=BOUND))
    assert ids(rows) == ["t0001", "t0000", "t0002"]  # the last has no number to keep the bound with
    assert [row.feasible for row in rows] == [True, False, False]


def test_what_is_past_a_bound_takes_no_mark(tmp_path: Path) -> None:
    """Oracle: by hand; the front is of those that keep the bound; past it less excess is before more, whatever the objectives."""
    sweep = SweepFolder(Folder(tmp_path))
    complete(sweep, 0, kid=0.0, spread=9.0, memorisation=0.9)
    complete(sweep, 1, kid=0.2, spread=1.0, memorisation=0.1)
    complete(sweep, 2, kid=0.3, spread=2.0, memorisation=0.2)
    complete(sweep, 3, kid=0.3, spread=1.0, memorisation=0.3)
    rows = leaderboard(sweep, SearchSpec(objectives=BOTH, constraints=BOUND))
    assert [(row.trial.id, row.front) for row in rows] == [("t0001", True), ("t0002", True), ("t0003", False), ("t0000", False)]


def test_a_running_trial_shows_what_it_would_count_by(tmp_path: Path) -> None:
    """Oracle: its best evaluation within the bounds, as when it has ended."""
    sweep = SweepFolder(Folder(tmp_path))
    sweep.write_trial(TrialRecord("t0000", 0, "search", "sampler", "ant", 0, "RUNNING"))
    for step, (loss, share) in enumerate([(0.5, 0.1), (0.1, 0.9), (0.6, 0.1)], start=1):
        sweep.append_row("t0000", EvaluationRow(step, 0.0, {"holdout_loss": loss, "memorisation": share}, 0.0, 0.0, 1.0, 1.0))
    (row,) = leaderboard(sweep, SearchSpec(objectives=LOSS, constraints=BOUND))
    assert (row.step, row.feasible) == (1, True)


def test_what_has_not_ended_shows_how_far_it_is_saved(tmp_path: Path) -> None:
    """Oracle: by hand. The latest checkpoint with its manifest counts; without a driver the trial is interrupted, but not in the CSV."""
    sweep = SweepFolder(Folder(tmp_path))
    sweep.write_trial(TrialRecord("t0000", 0, "search", "sampler", "ant", 0, "RUNNING", error="out of memory"))
    sweep.write_trial(TrialRecord("t0001", 1, "search", "sampler", "ant", 0, "RUNNING"))
    complete(sweep, 2, holdout_loss=0.2)
    for name in ("step_000040/manifest.json", "step_000118/manifest.json", "step_000120/state.json"):
        (sweep.trial("t0000") / "checkpoints").write_text(name, "{}")
    for driven, word in ((True, "running"), (False, "interrupted")):
        rows = leaderboard(sweep, SEARCH, driven=driven)
        assert [(row.saved_step, row.state) for row in rows] == [(None, "complete"), (118, word), (None, word)]
        console = Console(file=io.StringIO(), width=80)
        console.print(leaderboard_view(rows, SEARCH))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert f"{word} at 118" in text
        assert "t0000 hasn't ended: out of memory" in text
        assert to_csv(rows, LOSS).count("RUNNING") == 2


def test_a_value_that_is_no_number_is_not_ranked(tmp_path: Path) -> None:
    sweep = SweepFolder(Folder(tmp_path))
    complete(sweep, 0, holdout_loss=float("nan"))
    complete(sweep, 1, holdout_loss=0.2)
    rows = leaderboard(sweep, SEARCH)
    assert [(row.trial.id, row.rank) for row in rows] == [("t0001", 1), ("t0000", None)]


def test_an_empty_sweep_has_no_winner(tmp_path: Path) -> None:
    rows = leaderboard(SweepFolder(Folder(tmp_path / "none")), SEARCH)
    assert rows == []
    assert winner(rows) is None
    Console(file=io.StringIO()).print(leaderboard_view(rows, SEARCH))


def test_csv_has_every_trial_and_all_digits(sweep: SweepFolder) -> None:
    rows = leaderboard(sweep, SEARCH)
    write_csv(sweep.folder, rows, LOSS)
    lines = list(csv.DictReader(io.StringIO(sweep.folder.read_text("leaderboard.csv"))))
    assert len(lines) == len(rows) == 21
    for line, row in zip(lines, rows, strict=True):
        assert line["id"] == row.trial.id
        assert line["holdout_loss"] == ("" if not row.values else repr(row.values["holdout_loss"]))
        assert float(line["train.lr"]) == row.trial.params["train.lr"]
    assert to_csv([], LOSS).count("\n") == 1


def test_view_shows_all_kinds_the_winner_and_the_failure(sweep: SweepFolder) -> None:
    rows = leaderboard(sweep, SEARCH)
    console = Console(file=io.StringIO(), width=160)
    console.print(leaderboard_view(rows, SEARCH, limit=5))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert rows[0].trial.id in text
    assert "and 9 more" in text
    assert "t0012 failed: loss is nan at step 12" in text
    assert "t0000, holdout_loss:" in text
    assert all(name in text for name in ("confirm-t0000-seed3", "control-t0000-seed2", "refit-t0000"))


def confirmation(kind: str, seed: int, value: float, source: str = "t0007") -> LeaderboardRow:
    record = TrialRecord(f"{kind}-{source}-seed{seed}", None, "confirm", source, "x", seed, "COMPLETE")
    record = record if kind == "confirm" else replace(record, kind="control")
    return LeaderboardRow(record, None, False, True, 40, {"holdout_loss": value})


def test_paired_comparison_is_the_t_interval_of_the_differences() -> None:
    """Oracle: scipy.stats.ttest_rel on the common seeds."""
    confirm, control = {1: 0.166, 2: 0.171, 3: 0.169, 4: 0.163, 9: 0.5}, {1: 0.170, 2: 0.172, 3: 0.174, 4: 0.169, 8: 0.1}
    rows = [confirmation("confirm", seed, value) for seed, value in confirm.items()]
    rows += [confirmation("control", seed, value) for seed, value in control.items()]
    (comparison,) = compare_with_control(rows, SEARCH)
    test = scipy.stats.ttest_rel([confirm[s] for s in (1, 2, 3, 4)], [control[s] for s in (1, 2, 3, 4)])
    interval = test.confidence_interval(0.95)
    assert comparison.seeds == (1, 2, 3, 4)
    assert comparison.trial_id == "t0007"
    assert comparison.interval.difference == pytest.approx(-0.004)
    assert comparison.interval[1:3] == pytest.approx((interval.low, interval.high))
    assert comparison.verdict == "better"
    (other_way,) = compare_with_control(rows, MAXIMISE)
    assert other_way.verdict == "worse"


def test_comparison_with_little_to_go_by() -> None:
    rows = [confirmation("confirm", 1, 0.1), confirmation("control", 1, 0.2), confirmation("confirm", 2, 0.1, source="t0003")]
    (comparison,) = compare_with_control(rows, SEARCH)
    assert comparison.verdict == "no verdict: fewer than three seeds"
    assert "interval" not in comparison.describe()
    rows = [confirmation(kind, seed, 0.1 * seed) for kind in ("confirm", "control") for seed in (1, 2, 3)]
    (equal,) = compare_with_control(rows, SEARCH)
    assert (*equal.interval, equal.verdict) == (0.0, 0.0, 0.0, 3, "no difference shown")
    assert "no difference shown" in equal.describe()


def searched(trial_id: str, loss: float, *, won: bool = True, rank: int = 1) -> LeaderboardRow:
    record = TrialRecord(trial_id, int(trial_id[1:]), "search", "sampler", "x", 0, "COMPLETE")
    return LeaderboardRow(record, rank, False, True, 40, {"holdout_loss": loss}, won=won)


def test_how_far_the_searchs_own_value_was_off() -> None:
    """Oracle: scipy.stats.ttest_1samp: the search's value minus the mean over the fresh seeds."""
    fresh = [0.166, 0.171, 0.169, 0.163]
    rows = [searched("t0007", 0.160), *(confirmation("confirm", seed, value) for seed, value in enumerate(fresh))]
    (bias,) = selection_bias(rows, SEARCH)
    interval = scipy.stats.ttest_1samp([0.160 - value for value in fresh], 0.0).confidence_interval(0.95)
    assert bias.interval.difference == pytest.approx(0.160 - sum(fresh) / 4)
    assert bias.interval[1:3] == pytest.approx((interval.low, interval.high))
    assert bias.describe().startswith("t0007, holdout_loss: 0.16 in the search, 0.1673 on fresh seeds, difference -0.00725, 95 % interval")
    assert bias.describe().endswith("(4 seeds): the search's value was too good")
    assert selection_bias(rows, MAXIMISE)[0].describe().endswith("(4 seeds): the search's value was too bad")
    assert bias.describe() in confirmation_lines(rows, SEARCH)
    (one,) = selection_bias(rows[:2], SEARCH)
    assert one.describe() == "t0007, holdout_loss: 0.16 in the search, 0.166 on fresh seeds, difference -0.006 (1 seed)"


def test_what_chose_is_not_reported(tmp_path: Path) -> None:
    """Oracle: by hand. Of two, the second is the better on seeds 0 and 1; seeds 2, 3 and 4 alone give its value and the comparison."""
    sweep = SweepFolder(Folder(tmp_path))
    complete(sweep, 0, holdout_loss=0.1)
    complete(sweep, 1, holdout_loss=0.2)
    losses = {"t0000": [0.5, 0.5], "t0001": [0.1, 0.1, 0.6, 0.7, 0.8]}
    reruns = [("confirm", one, seed, loss) for one, values in losses.items() for seed, loss in enumerate(values)]
    for kind, source, seed, loss in [*reruns, *(("control", "t0001", seed, 0.1 * seed) for seed in range(5))]:
        name = f"{kind}-{source}-seed{seed}"
        sweep.write_trial(TrialRecord(name, None, kind, source, "x", seed, "COMPLETE", {}, 40, {"holdout_loss": loss}))  # type: ignore[arg-type]
    search = SearchSpec(objectives=LOSS, confirm=ConfirmSpec(top=2, seeds=[0, 1, 2, 3, 4]))
    rows = leaderboard(sweep, search)
    best = winner(rows)
    assert best is not None
    assert (best.trial.id, best.rank) == ("t0001", 2)
    (bias,), (comparison,) = selection_bias(rows, search), compare_with_control(rows, search)
    assert (bias.seeds, bias.fresh_mean) == ((2, 3, 4), pytest.approx(0.7))
    assert (comparison.seeds, comparison.confirm_mean, comparison.control_mean) == ((2, 3, 4), pytest.approx(0.7), pytest.approx(0.3))
    lines = confirmation_lines(rows, search)
    assert lines[0] == "t0001 chosen among t0000, t0001 on seeds 0, 1; reported on seeds 2, 3, 4"
    console = Console(file=io.StringIO(), width=200)
    console.print(leaderboard_view(rows, search))
    assert lines[0] in console.file.getvalue()  # type: ignore[attr-defined]
    few = SearchSpec(objectives=LOSS, confirm=ConfirmSpec(top=2, seeds=[0, 1, 2]))
    line = confirmation_lines(leaderboard(sweep, few), few)[0]
    assert line == "t0001 chosen among t0000, t0001 on seed 0; reported on seeds 1, 2, too few for a verdict (3)"
    alone = SearchSpec(objectives=LOSS, confirm=ConfirmSpec(top=2, seeds=[0]))
    lines = confirmation_lines(leaderboard(sweep, alone), alone)
    assert lines == ["t0001 chosen among t0000, t0001 on seed 0; no seed is left to report it on"]


@pytest.mark.parametrize(
    ("confirm", "control"),
    [((9.0, 9.0, 9.0), (8.0, 8.0, 8.0)), ((8.0, 7.0, 9.0), (9.0, 8.0, 10.0)), ((0.9, 0.3, 0.8), (0.8, 0.2, 0.7))],
    ids=str,
)
def test_an_interval_without_a_width_is_no_verdict(confirm: tuple[float, ...], control: tuple[float, ...]) -> None:
    """Oracle: seeds that differ by the same (counts, to rounding also .9 - .8 and .3 - .2) say nothing of how much others vary."""
    rows = [confirmation("confirm", seed, value) for seed, value in enumerate(confirm)]
    rows += [confirmation("control", seed, value) for seed, value in enumerate(control)]
    for direction in ("min", "max"):
        (comparison,) = compare_with_control(rows, SEARCH if direction == "min" else MAXIMISE)
        assert comparison.describe().endswith("no verdict: the same difference on every seed")


def test_the_leaderboard_imports_nothing_heavy() -> None:
    """`fewshot-ray leaderboard` answers at once. Oracle: a fresh interpreter's modules."""
    code = (
        "import sys, fewshot_ray.search.leaderboard, fewshot_ray.report.progress, fewshot_ray.report.page, fewshot_ray.report.tensorboard;"
        "print([m for m in ('torch', 'scipy', 'plotly', 'numpy', 'ray') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
