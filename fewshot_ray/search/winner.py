"""The trial that is a sweep's result."""

from __future__ import annotations

from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.search.leaderboard import leaderboard, winner
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord, read_spec
from fewshot_ray.spec.sections import CrossFit, FileSpec


def trial_tree(folder: SweepFolder, trial_id: str) -> dict[str, Any]:
    """The tree of a trial's spec."""
    return read_spec(folder.trial(trial_id)).tree


def exported_trial(folder: SweepFolder, file: FileSpec) -> TrialRecord:
    """The trial that is exported: the winner, or its refit on all images. Raises UserError where there is none yet."""
    row = winner(leaderboard(folder, file.search))
    if row is None:
        raise UserError(_no_result(folder))
    if not isinstance(file.target.holdout, CrossFit):
        return row.trial
    refit = folder.record(f"refit-{row.trial.id}")
    if refit is not None and refit.state == "FAIL":
        raise UserError(f"{folder.folder.url}: {refit.id} failed ({refit.error}); `fewshot-ray export --trial` gives another trial")
    if refit is None or refit.state != "COMPLETE":
        raise UserError(f"{folder.folder.url}: {row.trial.id} isn't refitted on all images yet; `fewshot-ray resume` goes on with it")
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
