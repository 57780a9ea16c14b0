"""The report page's plots, as HTML fragments for a page that has plotly.js."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fewshot_ray.report.importance import Importance
from fewshot_ray.report.tables import format_value
from fewshot_ray.search.leaderboard import LeaderboardRow, metric_names
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder
from fewshot_ray.spec.sections.evaluate import BAND_METRICS
from fewshot_ray.trial.ranking import Objectives

COLOUR = {
    "first": "#1a7f37",
    "search": "#8c96a3",
    "source": "#1f2328",
    "confirm": "#0969da",
    "control": "#bc4c00",
    "plain": "#d4a72c",
    "refit": "#8250df",
}
LEGEND = {
    "first": "winner",
    "search": "search",
    "source": "source model",
    "confirm": "confirm",
    "control": "plain control",
    "plain": "plain's own search",
    "refit": "refit",
}
BAND_COLOUR = {"relative_coarse": "#8250df", "relative_content": "#1a7f37", "relative_cleanup": "#0969da"}
STATE_SYMBOL = {"COMPLETE": "circle", "RUNNING": "circle-open", "PRUNED": "x-thin-open", "FAIL": "triangle-down-open"}
SCATTERS_ABREAST = 3


def learning_curves(sweep: SweepFolder, rows: Sequence[LeaderboardRow], objectives: Objectives) -> str:
    """Learning curves of all trials, one metric at a time chosen from a menu; "" before the first evaluation."""
    import plotly.graph_objects as go

    curves = _from_the_source(sweep, rows)
    if not any(curves.values()):
        return ""
    names = [name for name in metric_names(rows, objectives) if name in objectives or name not in BAND_METRICS]
    names = list(dict.fromkeys([*names, "train_loss"]))
    drawn = [row for row in reversed(rows) if curves[row.trial.id]]  # the winner last, on top
    speaks_for = {_group(row): row.trial.id for row in drawn}  # the best of each group is shown in the legend
    figure = go.Figure()
    for metric in names:
        for row in drawn:
            in_legend = speaks_for[_group(row)] == row.trial.id
            figure.add_trace(_curve(row, curves[row.trial.id], metric, in_legend=in_legend, visible=metric == names[0]))
    figure.update_layout(**_layout(480), hovermode="closest", legend={"groupclick": "togglegroup"}, updatemenus=[_menu(names, len(drawn))])
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=names[0])
    return _html(figure)


def _from_the_source(sweep: SweepFolder, rows: Sequence[LeaderboardRow]) -> dict[str, list[EvaluationRow]]:
    """The evaluations of each trial, before which the source's stands, where it was measured."""
    source = [one for row in rows if row.trial.kind == "source" for one in sweep.rows(row.trial.id)]
    found = {}
    for row in rows:
        own = [] if row.trial.kind == "source" else sweep.rows(row.trial.id)
        found[row.trial.id] = [*source, *own] if own or row.trial.kind == "source" else []
    return found


def band_curves(sweep: SweepFolder, rows: Sequence[LeaderboardRow]) -> str:
    """The losses by noise level relative to the source's, of the winner and of plain fine-tuning in the search; "" without any."""
    import plotly.graph_objects as go

    shown = [row for row in rows if row.won or (row.trial.kind == "search" and row.trial.origin == "plain")]
    curves = _from_the_source(sweep, [row for row in rows if row in shown or row.trial.kind == "source"])
    figure = go.Figure()
    for row in shown:
        for metric, colour in BAND_COLOUR.items():
            curve = [one for one in curves[row.trial.id] if metric in one.metrics]
            name = f"{metric.removeprefix('relative_')}, {row.trial.id}"
            line = {"color": colour, "width": 2.5 if row.won else 1.5, "dash": "solid" if row.won else "dot"}
            steps, values = [one.step for one in curve], [one.metrics[metric] for one in curve]
            if any(one.step > 0 for one in curve):
                figure.add_trace(go.Scatter(x=steps, y=values, mode="lines+markers", line=line, marker={"size": 5}, name=escape(name)))
    if not figure.data:
        return ""
    figure.add_hline(y=1, line={"color": COLOUR["source"], "width": 1, "dash": "dash"})
    figure.update_layout(**_layout(360), hovermode="closest")
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss relative to the source's", type="log")
    return _html(figure)


def parameter_scatter(rows: Sequence[LeaderboardRow], objectives: Objectives) -> str:
    """One small plot per searched parameter, its value against the first objective; "" where nothing was searched.

    No parallel coordinates, since trials of different methods have different parameters.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    objective = next(iter(objectives))
    shown = [row for row in reversed(rows) if row.trial.kind == "search" and math.isfinite(row.values.get(objective, math.nan))]
    params = sorted({name for row in shown for name in row.trial.params})
    if not params:
        return ""
    lines = -(-len(params) // SCATTERS_ABREAST)
    figure = make_subplots(lines, SCATTERS_ABREAST, vertical_spacing=0.42 / lines, horizontal_spacing=0.07)
    for place, param in enumerate(params):
        line, column = divmod(place, SCATTERS_ABREAST)
        having = [row for row in shown if row.trial.params.get(param) is not None]
        axis = _parameter_axis([row.trial.params[param] for row in having])
        marker = {"color": [COLOUR[_group(row)] for row in having], "symbol": [STATE_SYMBOL[row.trial.state] for row in having], "size": 9}
        x = [row.trial.params[param] if axis.get("type") != "category" else str(row.trial.params[param]) for row in having]
        y, text = [row.values[objective] for row in having], [_hover(row) for row in having]
        points = go.Scatter(x=x, y=y, mode="markers", marker=marker, text=text, hovertemplate="%{text}<extra></extra>", showlegend=False)
        figure.add_trace(points, line + 1, column + 1)
        figure.update_xaxes(title=escape(param), **axis, row=line + 1, col=column + 1)
        if column == 0:
            figure.update_yaxes(title=escape(objective), row=line + 1, col=column + 1)
    figure.update_layout(**_layout(60 + 260 * lines))
    legend = "Green: the winner; filled circles: complete; open: running; crosses: pruned at their best so far; triangles: failed."
    return f'<p class="quiet">{legend}</p>{_html(figure)}'


def importance_bars(found: Sequence[Importance]) -> str:
    """A bar for each searched value, an objective beside the other; the most important for the first one on top."""
    import plotly.graph_objects as go

    paths = list(dict.fromkeys(path for one in found for path in one.shares))[::-1]
    figure = go.Figure()
    for one in found:
        shares = [one.shares.get(path, 0.0) for path in paths]
        hover = "%{y}: %{x:.0%}<extra>" + escape(one.metric) + "</extra>"
        figure.add_trace(
            go.Bar(y=[escape(path) for path in paths], x=shares, orientation="h", name=escape(one.metric), hovertemplate=hover)
        )
    figure.update_layout(**_layout(110 + 26 * len(paths) * len(found)), barmode="group", showlegend=len(found) > 1)
    figure.update_xaxes(title="importance", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return _html(figure)


def _curve(row: LeaderboardRow, curve: Sequence[EvaluationRow], metric: str, *, in_legend: bool, visible: bool) -> Any:
    import plotly.graph_objects as go

    group = _group(row)
    value = [r.metrics.get(metric) for r in curve]
    if metric == "train_loss":  # at step 0 nothing is trained
        value = [None if r.step == 0 else r.train_loss for r in curve]
    width, opacity = (3.5, 1.0) if group == "first" else (1.5, 0.55 if group in ("search", "plain") else 0.9)
    dash = "dot" if row.trial.state in ("PRUNED", "FAIL") else "solid"
    return go.Scatter(
        x=[r.step for r in curve],
        y=value,
        mode="lines+markers",
        line={"color": COLOUR[group], "width": width, "dash": dash},
        marker={"size": 5},
        opacity=opacity,
        name=LEGEND[group],
        legendgroup=group,
        legendrank=list(LEGEND).index(group),
        showlegend=in_legend,
        visible=visible,
        text=[_hover(row)] * len(curve),
        hovertemplate="step %{x}: %{y:.4g}<br>%{text}<extra></extra>",
    )


def _menu(names: Sequence[str], trials: int) -> dict[str, Any]:
    """The menu of metrics; traces are ordered by metric, `trials` of each."""
    buttons = [
        {
            "label": escape(name),
            "method": "update",
            "args": [{"visible": [place // trials == chosen for place in range(trials * len(names))]}, {"yaxis.title.text": escape(name)}],
        }
        for chosen, name in enumerate(names)
    ]
    return {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.13, "yanchor": "top"}


def _parameter_axis(values: Sequence[Any]) -> dict[str, Any]:
    """The axis: log for positive numbers over more than a factor 20, categories where not all are numbers, else linear."""
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return {"type": "category"}
    if min(values) > 0 and max(values) / min(values) > 20:
        return {"type": "log", "exponentformat": "power", "dtick": 1}
    return {"type": "linear"}


def _group(row: LeaderboardRow) -> str:
    return "first" if row.won else row.trial.kind


def _hover(row: LeaderboardRow) -> str:
    params: Mapping[str, Any] = row.trial.params
    lines = [f"<b>{escape(row.trial.id)}</b> {escape(row.trial.label)} ({row.trial.state.lower()})"]
    lines += [f"{escape(name)} = {escape(format_value(value))}" for name, value in sorted(params.items())]
    return "<br>".join(lines)


def _layout(height: int) -> dict[str, Any]:
    font = {"family": "system-ui, sans-serif", "size": 13}
    return {"template": "plotly_white", "height": height, "margin": {"l": 70, "r": 20, "t": 50, "b": 50}, "font": font}


def _html(figure: Any) -> str:
    from plotly.io import to_html

    html: str = to_html(figure, full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return html
