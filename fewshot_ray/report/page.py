"""The report page (report.html): a single file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from string import Template

from fewshot_ray.report.importance import importances, searched_ranges
from fewshot_ray.report.plots import band_curves, importance_bars, learning_curves, parameter_scatter
from fewshot_ray.report.stamps import sweep_stamps
from fewshot_ray.report.tables import HEADINGS, format_metric, format_value
from fewshot_ray.search.against_source import source_lines
from fewshot_ray.search.confirmation import confirmation_lines
from fewshot_ray.search.leaderboard import KINDS, STATES, LeaderboardRow, leaderboard, metric_names, winner
from fewshot_ray.search.sweep_folder import SOURCE, SweepFolder
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.trial.ranking import Objectives

GRIDS_SHOWN = 6

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 1150px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; }
.quiet { color: #59636e; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; white-space: nowrap; border-bottom: 1px solid #e4e7eb; }
th { border-bottom: 2px solid #9aa4af; vertical-align: bottom; white-space: normal; }
td.number, th.number { text-align: right; }
tr.first td { background: #e6f4ea; font-weight: 600; }
tr.pruned td, tr.running td { color: #6a737d; }
tr.fail td { color: #b3261e; }
tr.heading td { font-weight: 600; padding-top: 1rem; }
figure { display: inline-block; margin: 0 1.2rem 1rem 0; vertical-align: top; }
figure img { image-rendering: pixelated; width: 256px; border: 1px solid #d0d7de; }
figure.best img { outline: 3px solid #1a7f37; }
figcaption { font-size: 13px; color: #59636e; }
</style>
$script
</head>
<body>
<h1>$title</h1>
<p class="quiet">$counts</p>
$winner
<h2>Leaderboard</h2>
<p class="quiet">A trial counts by its best evaluation. Only trials that ran to the end are ranked.</p>
<div class="wide">$table</div>
$stamps
<h2>Learning curves</h2>
$curves
$bands
<h2>Searched values against $first_objective</h2>
$scatter
$importance
$grids
</body>
</html>
""")


def report_page(sweep: SweepFolder, search: SearchSpec, *, title: str | None = None) -> str:
    """The page's HTML, for a running or a finished sweep; about 5 MB, nearly all of it plotly.js."""
    from plotly.offline import get_plotlyjs

    rows, objectives = leaderboard(sweep, search), search.objectives
    return PAGE.substitute(
        title=escape(title or sweep.folder.name),
        script=f"<script>{get_plotlyjs()}</script>",
        counts=_counts(rows),
        winner=_winner(rows, search),
        table=_table(rows, objectives),
        stamps=_stamps(sweep, rows),
        curves=learning_curves(sweep, rows, objectives) or _nothing("No evaluation yet."),
        bands=_bands(sweep, rows),
        first_objective=escape(next(iter(objectives))),
        scatter=parameter_scatter(rows, objectives) or _nothing("No value was searched, or no trial has ended."),
        importance=_importance(sweep, rows, objectives),
        grids=_grids(sweep, rows),
    )


def write_page(sweep: SweepFolder, search: SearchSpec, *, title: str | None = None) -> None:
    """Write `report.html` into the sweep's folder."""
    sweep.folder.write_text("report.html", report_page(sweep, search, title=title))


def _importance(sweep: SweepFolder, rows: Sequence[LeaderboardRow], objectives: Objectives) -> str:
    """The plot of importances with its heading; "" where too little is known."""
    found = importances(rows, searched_ranges(sweep), objectives)
    if not found:
        return ""
    text = (
        f"Shares by PED-ANOVA over {found[0].trials} trials of the search, stopped ones by their best evaluation: how much a value tells "
        "a good trial from the others. A value of no importance may still matter outside its range."
    )
    return f'<h2>Importance of the searched values</h2>\n<p class="quiet">{text}</p>\n{importance_bars(found)}'


def _bands(sweep: SweepFolder, rows: Sequence[LeaderboardRow]) -> str:
    """The plot of losses by noise level with its heading; "" where they aren't measured, or there is no source to compare with."""
    plot = band_curves(sweep, rows)
    if not plot:
        return ""
    text = (
        "Held-out losses of the winner, and of plain fine-tuning in the search, relative to the source model's: 1 is the source, below is "
        "better. Coarse: SNR below 0.01; content: 0.01 to 1; cleanup: above 1."
    )
    return f'<h2>Losses by noise level</h2>\n<p class="quiet">{text}</p>\n{plot}'


def _stamps(sweep: SweepFolder, rows: Sequence[LeaderboardRow]) -> str:
    """What the metrics are measured with."""
    lines = sweep_stamps(sweep, rows)
    return _nothing(f"Measured with {'; '.join(lines)}.") if lines else ""


def _counts(rows: Sequence[LeaderboardRow]) -> str:
    states = [row.trial.state for row in rows if row.trial.kind != "source"]
    parts = [f"{states.count(state)} {state.lower()}" for state in STATES if state in states]
    minutes = sum(row.trial.train_sec for row in rows) / 60
    return f"{len(states)} trials: {', '.join(parts)}; {minutes:.1f} minutes of training in all" if states else "no trial yet"


def _winner(rows: Sequence[LeaderboardRow], search: SearchSpec) -> str:
    best = winner(rows)
    if best is None:
        return _nothing("No trial has run to the end yet.")
    metrics = ", ".join(f"{escape(name)} {format_metric(best.values.get(name))}" for name in search.objectives)
    params = ", ".join(f"{escape(name)} = {escape(format_value(value))}" for name, value in sorted(best.trial.params.items()))
    trial = f"<p><b>{escape(best.trial.id)}</b> ({escape(best.trial.label)}) leads with {metrics} at step {best.step}."
    lines = [trial + (f" {params}." if params else "") + "</p>"]
    lines += [f"<p>{escape(line)}.</p>" for line in [*source_lines(rows, search), *confirmation_lines(rows, search)]]
    return "\n".join(lines)


def _table(rows: Sequence[LeaderboardRow], objectives: Objectives) -> str:
    metrics = metric_names(rows, objectives)
    params = sorted({name for row in rows for name in row.trial.params})
    arrows = {name: {"min": " ↓", "max": " ↑"}[direction] for name, direction in objectives.items()}
    numeric = ["", "seed", "best at", *metrics, *params, "seconds"]
    columns = ["", "trial", "what", "seed", "state", "best at", *metrics, *params, "seconds", "note"]
    body = [_line("th", [name + arrows.get(name, "") for name in columns], [name in numeric for name in columns], "")]
    for kind in KINDS:
        of_kind = [row for row in rows if row.trial.kind == kind]
        if of_kind and kind != "search":
            body.append(f'<tr class="heading"><td colspan="{len(columns)}">{escape(HEADINGS[kind])}</td></tr>')
        for row in of_kind:
            style = "first" if row.won else row.trial.state.lower()
            body.append(
                _line("td", _cells(row, metrics, params, mark_front=len(objectives) > 1), [name in numeric for name in columns], style)
            )
    return f"<table>{''.join(body)}</table>"


def _cells(row: LeaderboardRow, metrics: Sequence[str], params: Sequence[str], *, mark_front: bool) -> list[str]:
    t = row.trial
    front = "on the Pareto front" if mark_front and row.front else ""
    note = t.error or (front if row.feasible or not row.values else "outside the constraints")
    start: list[object] = [row.rank, t.id, t.label, t.seed, t.state.lower(), row.step]
    measured = [format_metric(row.values.get(name)) for name in metrics]
    searched = [t.params.get(name) for name in params]
    return [format_value(cell) for cell in [*start, *measured, *searched, f"{t.train_sec:.0f}", note]]


def _line(tag: str, cells: Sequence[str], numeric: Sequence[bool], style: str) -> str:
    styles = [' class="number"' if right else "" for right in numeric]
    inside = (
        f"<{tag}{attribute}>{_breakable(cell) if tag == 'th' else escape(cell)}</{tag}>"
        for cell, attribute in zip(cells, styles, strict=True)
    )
    return f'<tr class="{style}">{"".join(inside)}</tr>'


def _breakable(heading: str) -> str:
    """A heading in which a dotted path may wrap after its dots, so that columns are as narrow as their values allow."""
    return escape(heading).replace(".", ".<wbr>")


def _grids(sweep: SweepFolder, rows: Sequence[LeaderboardRow]) -> str:
    """The samples of the winner and of its refit."""
    shown = [row for row in rows if row.won or row.trial.kind == "refit"]
    return "\n".join(_samples(sweep, row) for row in shown if sweep.grid_steps(row.trial.id))


def _samples(sweep: SweepFolder, row: LeaderboardRow) -> str:
    """The trial's grids at its best step, at its last, and evenly spread over its training."""
    steps = sweep.grid_steps(row.trial.id)
    stride = -(-len(steps) // GRIDS_SHOWN)
    shown = sorted({*steps[::stride], steps[-1], *([row.step] if row.step in steps else [])})
    source = [_figure(sweep.grid(SOURCE, 0), "the source model")] if 0 in sweep.grid_steps(SOURCE) else []
    figures = [_figure(sweep.grid(row.trial.id, step), f"step {step}", is_best=step == row.step) for step in shown]
    title = f"Samples of {escape(row.trial.id)} ({escape(row.trial.label)})"
    return f"<h2>{title}</h2>\n<p class='quiet'>From the same noise at every step.</p>\n{''.join([*source, *figures])}"


def _figure(png: bytes, of: str, *, is_best: bool = False) -> str:
    source = base64.b64encode(png).decode()
    caption = of + (", the best" if is_best else "")
    style = ' class="best"' if is_best else ""
    return f'<figure{style}><img alt="samples: {of}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'


def _nothing(text: str) -> str:
    return f'<p class="quiet">{escape(text)}</p>'
