"""The order of a sweep's trials: every trial with its best evaluation, and the rank of those that ran to their end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.trial.ranking import Objectives, Ranking

KINDS = ("search", "source", "confirm", "control", "plain", "refit")
STATES = ("COMPLETE", "RUNNING", "PRUNED", "FAIL")


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial with its best evaluation."""

    trial: TrialRecord
    rank: int | None
    """Rank from 1, the best, among the complete trials of the search; None for other trials."""
    front: bool
    """Whether it is on the Pareto front of the feasible trials (where there are none, of those with the smallest violation).

    Of trials with equal objectives the first is."""
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
    won: bool = False
    """Whether it is the sweep's result so far: rank 1, or with several to confirm the one that the choosing seeds chose."""
    images: Sequence[float] = ()
    """The first objective at `step` by held-out image, of the source and of the result, where there are such values."""

    @property
    def state(self) -> str:
        """The state as text."""
        return "interrupted" if self.interrupted else self.trial.state.lower()


def leaderboard(sweep: SweepFolder, search: SearchSpec, *, driven: bool = True) -> list[LeaderboardRow]:
    """The source and all trials by kind (`KINDS`); within a kind the complete ones by rank, then running, pruned, failed.

    Where the sweep isn't `driven` by any process, those that haven't ended are interrupted.
    """
    ranking = Ranking.of(search)
    rows = [_row(sweep, trial, ranking, driven=driven) for trial in sweep.trials()]
    contenders = [row for row in rows if row.trial.kind == "search" and row.trial.state == "COMPLETE"]
    values = [row.values for row in contenders]
    standings = zip(contenders, ranking.standings(values), strict=True)
    rank = {row.trial.id: standing.place + 1 for row, standing in standings if standing.measured}
    front = {contenders[index].trial.id for index in ranking.front(values)}
    placed = [replace(row, rank=rank.get(row.trial.id), front=row.trial.id in front) for row in rows]
    chosen = _chosen(placed, search)
    told = [replace(row, won=row is chosen) for row in placed]
    shown = [replace(row, images=_images(sweep, row, search)) if row.won or row.trial.kind == "source" else row for row in told]
    return sorted(shown, key=lambda row: _order(row, ranking))


def _images(sweep: SweepFolder, row: LeaderboardRow, search: SearchSpec) -> Sequence[float]:
    """The first objective of a row by held-out image."""
    objective = next(iter(search.objectives))
    return next((one.images_of(objective) for one in sweep.rows(row.trial.id) if one.step == row.step), ())


def winner(rows: Sequence[LeaderboardRow]) -> LeaderboardRow | None:
    """The sweep's result so far; None before a trial of the search is complete."""
    return next((row for row in rows if row.won), None)


def contenders(rows: Sequence[LeaderboardRow], search: SearchSpec) -> list[LeaderboardRow]:
    """The best complete trials of the search, best first: as many as are confirmed, at least one where there is one."""
    ranked = sorted((row for row in rows if row.rank is not None), key=lambda row: row.rank or 0)
    return ranked[: search.confirm.top if search.confirm is not None else 1]


def tuned_plain(rows: Sequence[LeaderboardRow], search: SearchSpec) -> LeaderboardRow | None:
    """The best complete trial of plain fine-tuning's own search; None without one."""
    complete = [row for row in rows if row.trial.kind == "plain" and row.trial.state == "COMPLETE"]
    best = Ranking.of(search).best_index([row.values for row in complete])
    return None if best is None else complete[best]


def control_id(source: str, seed: int, tuned: str | None = None) -> str:
    """The id of a control: plain fine-tuning with the `train` values of the trial `source`, or as the trial `tuned` of its own search."""
    return f"control-{source}-seed{seed}" if tuned is None else f"control-{source}-{tuned}-seed{seed}"


def _chosen(rows: Sequence[LeaderboardRow], search: SearchSpec) -> LeaderboardRow | None:
    """The best of the contenders; of several the one with the best means over the choosing seeds, by the ranking of evaluations.

    One with an incomplete rerun on these can't win; where all have one, the search's order decides.
    """
    best = contenders(rows, search)
    if search.confirm is None or len(best) < 2:
        return best[0] if best else None
    means = [_means(rows, row.trial.id, search.confirm.choosing) for row in best]
    index = Ranking.of(search).best_index(means)
    return best[0 if index is None else index]


def _means(rows: Sequence[LeaderboardRow], source: str, seeds: Sequence[int]) -> dict[str, float]:
    """Means of the metrics over a trial's reruns on these seeds; empty where one isn't complete."""
    reruns = [row for row in rows if (row.trial.kind, row.trial.origin) == ("confirm", source) and row.trial.seed in seeds]
    if len([row for row in reruns if row.trial.state == "COMPLETE"]) < len(seeds):
        return {}
    return {name: math.fsum(row.values.get(name, math.nan) for row in reruns) / len(reruns) for name in reruns[0].values}


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


def _order(row: LeaderboardRow, ranking: Ranking) -> tuple[int, int, float, tuple[float, ...], str]:
    kind, state = KINDS.index(row.trial.kind), STATES.index(row.trial.state)
    merit = ranking.merit(row.values) if row.trial.kind in ("search", "plain") else ()
    return kind, state, row.rank or math.inf, merit, row.trial.id
