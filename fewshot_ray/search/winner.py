"""Chooses the trial that is a sweep's result."""

from __future__ import annotations

import math
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord, read_spec
from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.trial.ranking import Bounds, Ranking


def bounds(file: FileSpec) -> Bounds:
    """The parsed constraints of a sweep."""
    return Ranking.of(file.search).bounds


def trial_tree(folder: SweepFolder, trial_id: str) -> dict[str, Any]:
    """The tree of a trial's spec."""
    return read_spec(folder.trial(trial_id)).tree


def exported_trial(folder: SweepFolder, file: FileSpec) -> TrialRecord:
    """The trial that is exported: the winner, or its refit on all images. Raises UserError where there is none yet."""
    ranked = ranked_trials(folder, file)
    if not ranked:
        raise UserError(_no_result(folder))
    winner = final_winner(folder, file, ranked)
    if not isinstance(file.target.holdout, CrossFit):
        return winner
    refit = folder.record(f"refit-{winner.id}")
    if refit is not None and refit.state == "FAIL":
        raise UserError(f"{folder.folder.url}: {refit.id} failed ({refit.error}); `fewshot-ray export --trial` gives another trial")
    if refit is None or refit.state != "COMPLETE":
        raise UserError(f"{folder.folder.url}: {winner.id} isn't refitted on all images yet; `fewshot-ray resume` goes on with it")
    return refit


def _no_result(folder: SweepFolder) -> str:
    """The message for a sweep without a complete trial."""
    records = [record for record in folder.trials() if record.kind == "search"]
    ended = [record for record in records if record.state != "RUNNING"]
    if not records or len(ended) < len(records):
        return f"{folder.folder.url}: no trial has run to its end yet; `fewshot-ray resume` goes on with it"
    failed = [record for record in records if record.state == "FAIL"]
    first = f" ({failed[0].id}: {failed[0].error})" if failed else ""
    return (
        f"{folder.folder.url}: no trial has run to its end, {len(failed)} of {len(records)} failed{first}; "
        f"the file put right, under another name, would be right"
    )


def ranked_trials(folder: SweepFolder, file: FileSpec) -> list[TrialRecord]:
    """The search's complete trials, best first."""
    rows = leaderboard(folder, file.search.objectives, bounds(file))
    return [row.trial for row in sorted((row for row in rows if row.rank is not None), key=lambda row: row.rank or 0)]


def final_winner(folder: SweepFolder, file: FileSpec, ranked: list[TrialRecord]) -> TrialRecord:
    """The winner; of several confirmed trials the one with the best means over the new seeds, by the ranking of evaluations.

    A trial with an incomplete rerun can't win; where all have one, the search's order decides.
    """
    confirm = file.search.confirm
    if confirm is None or confirm.top == 1:
        return ranked[0]
    means = [_means(folder, record, confirm.seeds) for record in ranked[: confirm.top]]
    best = Ranking.of(file.search).best_index(means)
    return ranked[0 if best is None else best]


def _means(folder: SweepFolder, winner: TrialRecord, seeds: list[int]) -> dict[str, float]:
    """Means of the metrics over a trial's reruns; empty where one isn't complete."""
    reruns = [folder.record(f"confirm-{winner.id}-seed{seed}") for seed in seeds]
    values = [rerun.values for rerun in reruns if rerun is not None and rerun.state == "COMPLETE" and rerun.values]
    if len(values) < len(reruns):
        return {}
    return {name: sum(one.get(name, math.nan) for one in values) / len(values) for name in values[0]}
