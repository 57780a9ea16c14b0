"""The leaderboard as a table for the terminal and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fewshot_ray.search.against_source import source_lines
from fewshot_ray.search.confirmation import confirmation_lines
from fewshot_ray.search.leaderboard import KINDS, LeaderboardRow, metric_names, winner
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.spec.sections.evaluate import BAND_METRICS, RELATIVE_LOSS
from fewshot_ray.storage import Folder
from fewshot_ray.trial.ranking import Objectives

SECONDARY = "occupancy"
"""Prefix of metrics that qualify others, as those that end in `_stderr` do: in the CSV, not in the terminal's table."""

COLUMN_GAP = 2

HEADINGS = {
    "search": "search",
    "source": "source: the model before training",
    "confirm": "confirm: on fresh seeds",
    "control": "control: plain fine-tuning",
    "plain": "plain fine-tuning's own search",
    "refit": "refit on all images",
}

SECONDARY_METRICS = {*BAND_METRICS, "drift"} - {RELATIVE_LOSS}
"""Metrics that come with others, which the terminal's table leaves out where they aren't objectives."""


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


def leaderboard_view(rows: Sequence[LeaderboardRow], search: SearchSpec, *, limit: int | None = None, width: int = 120) -> RenderableType:
    """The table, the winner's values and what its reruns say, for a rich console `width` characters wide."""
    parts: list[RenderableType] = [leaderboard_table(rows, search.objectives, limit=limit, width=width)]
    best = winner(rows)
    if best is not None and best.trial.params:
        values = ", ".join(f"{name} {format_value(value)}" for name, value in sorted(best.trial.params.items()))
        parts.append(Text(f"\nwinner {best.trial.id}: {values}"))
    if lines := [*source_lines(rows, search), *confirmation_lines(rows, search)]:
        parts.append(Text("\n" + "\n".join(lines)))
    for row in rows:
        if row.trial.error:
            ended = "failed" if row.trial.state == "FAIL" else "hasn't ended"
            parts.append(Text(f"{row.trial.id} {ended}: {row.trial.error}", style="red"))
    return Group(*parts)


def _fitting(names: Sequence[str], width: int, *, least: int) -> list[str]:
    """The first names whose columns fit into `width` characters; the first `least` of them are the objectives."""
    shown: list[str] = []
    for name in names:
        if len(shown) >= least and (name.startswith(SECONDARY) or name.endswith("_stderr") or name in SECONDARY_METRICS):
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
    if row.won:
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
