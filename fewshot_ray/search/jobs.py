"""The jobs of a sweep: the search's trials, then reruns (confirmation) with their controls, and the refit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fewshot_ray.search.job import Job
from fewshot_ray.search.study import PLAIN_ORIGIN, Proposal
from fewshot_ray.search.sweep_folder import Kind, SweepFolder, TrialRecord
from fewshot_ray.search.winner import final_winner, ranked_trials, trial_tree
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.trial.compose import PLAIN, plain, plain_values, preset_values, with_values

LABELS = {"preset": "the methods' preset", "plain": "plain fine-tuning", "file": "the file's values", "sampler": "sampler"}


def trial_id(number: int) -> str:
    """The id of the search's trial of this number, e.g. `t0007`."""
    return f"t{number:04d}"


def _folds(file: FileSpec) -> int:
    return file.target.holdout.crossfit if isinstance(file.target.holdout, CrossFit) else 1


def search_job(document: Document, file: FileSpec, proposal: Proposal) -> Job:
    """The job of a proposal."""
    base = plain(document) if proposal.origin == "plain" and PLAIN not in file.method else document
    tree = with_values(base, proposal.values).tree
    steps = tree.get("train", {}).get("steps", file.train.steps)
    return Job(
        id=trial_id(proposal.number),
        number=proposal.number,
        kind="search",
        origin=proposal.origin,
        label=LABELS[proposal.origin],
        tree=tree,
        seed=file.seed,
        last_step=steps,
        folds=_folds(file),
        params=proposal.values,
    )


def first_trials(document: Document, file: FileSpec) -> list[tuple[dict[str, Any], str]]:
    """Values and origins of the trials before the sampler's: the methods' preset and plain fine-tuning."""
    preset, is_plain = preset_values(document), PLAIN in file.method
    first: list[tuple[dict[str, Any], str]] = []
    if not preset:
        first.append(({}, PLAIN_ORIGIN if is_plain else "file"))
    elif file.search.include_preset:
        first.append((preset, PLAIN_ORIGIN if is_plain else "preset"))
    if file.search.include_plain and not is_plain:
        first.append((plain_values(preset), PLAIN_ORIGIN))
    return first


def after_search(folder: SweepFolder, file: FileSpec) -> list[Job]:
    """The jobs once every trial of the search has ended: reruns of the winners and their controls, then the refit of the best."""
    ranked = ranked_trials(folder, file)
    if not ranked:
        return []
    jobs: list[Job] = []
    confirm = file.search.confirm
    if confirm is not None:
        jobs += [job for record in ranked[: confirm.top] for job in _confirmation(folder, file, record)]
    if isinstance(file.target.holdout, CrossFit):
        unfinished = [job for job in jobs if (done := folder.record(job.id)) is None or done.state == "RUNNING"]
        if not unfinished:
            jobs.append(_refit(folder, file, final_winner(folder, file, ranked)))
    return jobs


def _confirmation(folder: SweepFolder, file: FileSpec, winner: TrialRecord) -> Iterator[Job]:
    """Reruns of a winner with new seeds, and for each a control: plain fine-tuning with the winner's `train` section."""
    assert file.search.confirm is not None
    tree = trial_tree(folder, winner.id)
    steps = tree.get("train", {}).get("steps", file.train.steps)
    arms: list[tuple[Kind, dict[str, Any], str]] = [("confirm", tree, f"{winner.id} again")]
    if PLAIN not in tree["method"]:
        arms.append(("control", {**tree, "method": {PLAIN: {}}}, f"plain fine-tuning as {winner.id}"))
    for seed in file.search.confirm.seeds:
        for kind, arm, label in arms:
            yield Job(
                id=f"{kind}-{winner.id}-seed{seed}",
                number=None,
                kind=kind,
                origin=winner.id,
                label=f"{label}, seed {seed}",
                tree=arm,
                seed=seed,
                last_step=steps,
                folds=_folds(file),
                params=plain_values(winner.params) if kind == "control" else winner.params,
            )


def _refit(folder: SweepFolder, file: FileSpec, winner: TrialRecord) -> Job:
    """The winner trained on all images for its best number of steps."""
    assert winner.best_step is not None
    return Job(
        id=f"refit-{winner.id}",
        number=None,
        kind="refit",
        origin=winner.id,
        label=f"{winner.id} on all images",
        tree=trial_tree(folder, winner.id),
        seed=winner.seed,
        last_step=winner.best_step,
        folds=1,
        refit_steps=winner.best_step,
        params=winner.params,
    )
