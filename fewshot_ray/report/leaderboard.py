"""Ranks a sweep's trials, as a table for the terminal and as CSV, and compares winners with their controls."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fewshot_ray.report.paired import Interval, Verdict, paired_interval
from fewshot_ray.report.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.storage import Folder
from fewshot_ray.trial.ranking import Bounds, Objectives, Ranking, fronts, ranked

SECONDARY = "occupancy"
"""Prefix of metrics that qualify others, as those that end in `_stderr` do: in the CSV, not in the terminal's table."""

COLUMN_GAP = 2

KINDS = ("search", "confirm", "control", "refit")
STATES = ("COMPLETE", "RUNNING", "PRUNED", "FAIL")
HEADINGS = {
    "search": "search",
    "confirm": "confirm: the winner on fresh seeds",
    "control": "control: plain fine-tuning",
    "refit": "refit on all images",
}


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial with its best evaluation."""

    trial: TrialRecord
    rank: int | None
    """Rank from 1 (the winner) among the complete trials of the search; None for other trials."""
    front: bool
    """Whether it is on the Pareto front of the feasible trials (where there are none, of those with the smallest violation)."""
    feasible: bool
    """Whether it keeps all constraints."""
    step: int | None
    """The step of the best evaluation; None before the first."""
    values: Mapping[str, float]
    """Every metric at `step`; empty before the first evaluation."""
    saved_step: int | None = None
    """The step of the latest checkpoint of a trial that hasn't ended; None before the first."""
    interrupted: bool = False
    """Whether it hasn't ended and no process runs the sweep."""

    @property
    def state(self) -> str:
        """The state as text."""
        return "interrupted" if self.interrupted else self.trial.state.lower()


def leaderboard(
    sweep: SweepFolder, objectives: Objectives, constraints: Bounds | None = None, *, driven: bool = True
) -> list[LeaderboardRow]:
    """All trials by kind (search, confirm, control, refit); within a kind the complete ones by rank, then running, pruned, failed.

    Where the sweep isn't `driven` by any process, those that haven't ended are interrupted.
    """
    ranking = Ranking(objectives, constraints or {})
    rows = [_row(sweep, trial, ranking, driven=driven) for trial in sweep.trials()]
    contenders = [row for row in rows if row.trial.kind == "search" and row.trial.state == "COMPLETE" and _is_measured(row, ranking)]
    merits = [ranking.merit(row.values) for row in contenders]
    rank = {contenders[index].trial.id: place for place, index in enumerate(ranked(merits), start=1)}
    front = {row.trial.id for row, number in zip(contenders, fronts(merits), strict=True) if number == 0}
    placed = [replace(row, rank=rank.get(row.trial.id), front=row.trial.id in front) for row in rows]
    return sorted(placed, key=lambda row: _order(row, ranking))


def winner(rows: Sequence[LeaderboardRow]) -> LeaderboardRow | None:
    """The best complete trial of the search; None while there is none."""
    return next((row for row in rows if row.rank == 1), None)


def metric_names(rows: Iterable[LeaderboardRow], objectives: Objectives) -> list[str]:
    """The objectives, then every other metric by name."""
    others = {name for row in rows for name in row.values}
    return [*objectives, *sorted(others - set(objectives))]


def _row(sweep: SweepFolder, trial: TrialRecord, ranking: Ranking, *, driven: bool) -> LeaderboardRow:
    step, values = trial.best_step, trial.values
    if values is None:  # running, or ended before its best evaluation was recorded
        rows = sweep.rows(trial.id)
        best = ranking.best_index([row.metrics for row in rows])
        step, values = (None, {}) if best is None else (rows[best].step, rows[best].metrics)
    row = LeaderboardRow(trial, None, False, ranking.excess(values) == 0, step, values)
    if trial.state != "RUNNING":
        return row
    return replace(row, saved_step=sweep.saved_step(trial.id), interrupted=not driven)


def _is_measured(row: LeaderboardRow, ranking: Ranking) -> bool:
    return math.isfinite(ranking.merit(row.values)[1])


def _order(row: LeaderboardRow, ranking: Ranking) -> tuple[int, int, float, tuple[float, ...], str]:
    kind, state = KINDS.index(row.trial.kind), STATES.index(row.trial.state)
    merit = ranking.merit(row.values) if row.trial.kind == "search" else ()
    return kind, state, row.rank or math.inf, merit, row.trial.id


def to_csv(rows: Sequence[LeaderboardRow], objectives: Objectives) -> str:
    """The leaderboard as CSV: a row per trial, a column per metric and parameter; numbers in full precision."""
    metrics = metric_names(rows, objectives)
    params = sorted({name for row in rows for name in row.trial.params})
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    fixed = ["rank", "id", "kind", "origin", "label", "state", "seed", "feasible", "pareto_front", "best_step"]
    out.writerow([*fixed, *metrics, *params, "train_sec", "started", "ended", "error"])
    for row in rows:
        t = row.trial
        flags = [str(row.feasible).lower(), str(row.front).lower()]
        cells: list[object] = [row.rank, t.id, t.kind, t.origin, t.label, t.state, t.seed, *flags, row.step]
        cells += [row.values.get(name) for name in metrics]
        cells += [t.params.get(name) for name in params]
        out.writerow([*cells, t.train_sec, t.started, t.ended, t.error])
    return text.getvalue()


def write_csv(folder: Folder, rows: Sequence[LeaderboardRow], objectives: Objectives) -> None:
    """Write `leaderboard.csv` into the sweep's folder."""
    folder.write_text("leaderboard.csv", to_csv(rows, objectives))


@dataclass(frozen=True)
class PairedComparison:
    """A confirmed trial compared with plain fine-tuning at its learning rate, paired by seed: confirm minus control."""

    trial_id: str
    """The search trial that was confirmed."""
    metric: str
    direction: Literal["min", "max"]
    seeds: tuple[int, ...]
    """The seeds that both have completed."""
    confirm_mean: float
    control_mean: float
    interval: Interval
    """Confidence interval of the mean difference."""

    @property
    def verdict(self) -> Verdict:
        """The conclusion from the interval for the confirmed trial, by the metric's direction."""
        return self.interval.verdict(self.direction)

    def describe(self) -> str:
        """The comparison in one line."""
        count, (difference, low, high, _) = len(self.seeds), self.interval
        interval = f", 95 % interval {low:+.4g} .. {high:+.4g}" if count > 1 else ""
        seeds = f"{count} seed{'s' if count > 1 else ''}"
        means = f"{self.confirm_mean:.4g} against plain fine-tuning's {self.control_mean:.4g}"
        return f"{self.trial_id}, {self.metric}: {means}, difference {difference:+.4g}{interval} ({seeds}): {self.verdict}"


def compare_with_control(rows: Sequence[LeaderboardRow], objectives: Objectives) -> list[PairedComparison]:
    """Comparisons of every confirmed trial with its control, for each objective, on the seeds that both completed; empty without any."""
    confirmed = _by_source(rows, "confirm")
    controls = _by_source(rows, "control")
    comparisons = []
    for source, runs in confirmed.items():
        control = controls.get(source, {})
        for metric, direction in objectives.items():
            pairs = {
                seed: (runs[seed].get(metric, math.nan), control[seed].get(metric, math.nan))
                for seed in sorted(runs.keys() & control.keys())
            }
            pairs = {seed: pair for seed, pair in pairs.items() if all(map(math.isfinite, pair))}
            if pairs:
                comparisons.append(_paired(source, metric, direction, pairs))
    return comparisons


def _by_source(rows: Sequence[LeaderboardRow], kind: str) -> dict[str, dict[int, Mapping[str, float]]]:
    """Id of the search trial -> seed -> values, of the complete reruns of that kind."""
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for row in rows:
        if row.trial.kind == kind and row.trial.state == "COMPLETE":
            found.setdefault(row.trial.origin, {})[row.trial.seed] = row.values
    return found


def _paired(source: str, metric: str, direction: Literal["min", "max"], pairs: Mapping[int, tuple[float, float]]) -> PairedComparison:
    confirm_mean, control_mean = (statistics.fmean(side) for side in zip(*pairs.values(), strict=True))
    interval = paired_interval([confirm - control for confirm, control in pairs.values()])
    return PairedComparison(source, metric, direction, tuple(pairs), confirm_mean, control_mean, interval)


def leaderboard_table(rows: Sequence[LeaderboardRow], objectives: Objectives, *, limit: int | None = None, width: int = 120) -> Table:
    """The leaderboard as a rich table; with `limit`, the first so many of the search's trials and the number of the others.

    It has the objectives and as many other metrics as fit into `width` characters; leaderboard.csv has all. With several objectives * marks
    the Pareto front.
    """
    fixed = sum((2, max((len(row.trial.id) for row in rows), default=5), 7, max((len(_state(row)) for row in rows), default=5), 7))
    fixed += 5 * COLUMN_GAP
    metrics = _fitting(metric_names(rows, objectives), width - fixed, least=len(objectives))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "trial", "origin", "state", "best at"):
        table.add_column(heading, justify="right" if heading in ("", "best at") else "left", no_wrap=True)
    for name in metrics:
        arrow = {"min": " ↓", "max": " ↑"}.get(objectives.get(name, ""), "")
        table.add_column(name + arrow, justify="right", no_wrap=True)
    for kind in KINDS:
        of_kind = [row for row in rows if row.trial.kind == kind]
        if of_kind and kind != "search":
            table.add_row()
        shown = of_kind[:limit] if kind == "search" else of_kind
        for row in shown:
            table.add_row(*_cells(row, metrics, mark_front=len(objectives) > 1), style=_style(row))
        if len(shown) < len(of_kind):
            table.add_row("", Text(f"and {len(of_kind) - len(shown)} more", style="dim"))
    return table


def leaderboard_view(
    rows: Sequence[LeaderboardRow], objectives: Objectives, *, limit: int | None = None, width: int = 120
) -> RenderableType:
    """The table, the winner's values and the comparisons with controls, for a rich console `width` characters wide."""
    parts: list[RenderableType] = [leaderboard_table(rows, objectives, limit=limit, width=width)]
    best = winner(rows)
    if best is not None and best.trial.params:
        values = ", ".join(f"{name} {format_value(value)}" for name, value in sorted(best.trial.params.items()))
        parts.append(Text(f"\nwinner {best.trial.id}: {values}"))
    comparisons = compare_with_control(rows, objectives)
    if comparisons:
        parts.append(Text("\n" + "\n".join(comparison.describe() for comparison in comparisons)))
    for row in rows:
        if row.trial.error:
            ended = "failed" if row.trial.state == "FAIL" else "hasn't ended"
            parts.append(Text(f"{row.trial.id} {ended}: {row.trial.error}", style="red"))
    return Group(*parts)


def _fitting(names: Sequence[str], width: int, *, least: int) -> list[str]:
    """The first names whose columns fit into `width` characters, at least `least` of them."""
    shown: list[str] = []
    for name in names:
        if name.startswith(SECONDARY) or name.endswith("_stderr"):
            continue
        width -= max(len(name) + 2, 7) + COLUMN_GAP
        if width < 0 and len(shown) >= least:
            break
        shown.append(name)
    return shown


def _cells(row: LeaderboardRow, metrics: Sequence[str], *, mark_front: bool) -> list[Text]:
    t = row.trial
    place = ("" if row.rank is None else str(row.rank)) + ("*" if mark_front and row.front else "")
    start = [place, t.id, t.origin, _state(row), "" if row.step is None else str(row.step)]
    return [Text(cell) for cell in [*start, *(format_metric(row.values.get(name)) for name in metrics)]]


def _state(row: LeaderboardRow) -> str:
    if row.trial.state == "RUNNING":
        return row.state if row.saved_step is None else f"{row.state} at {row.saved_step}"
    return row.state if row.feasible or not row.values else "past bounds"


def _style(row: LeaderboardRow) -> str:
    if row.rank == 1:
        return "bold green"
    return {"PRUNED": "dim", "FAIL": "red", "RUNNING": "cyan"}.get(row.trial.state, "")


def format_value(value: object) -> str:
    """A value as text: floats with four significant digits, None as ""."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_metric(value: float | None) -> str:
    """A metric's value as text: four significant digits with trailing zeros, so that columns align."""
    return "" if value is None else f"{value:#.4g}".rstrip(".")
