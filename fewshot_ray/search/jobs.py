"""The jobs of a sweep: the search's trials, then reruns (confirmation) with their controls, and the refit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from fewshot_ray.search.frozen_trials import PLAIN_ORIGIN, Proposal
from fewshot_ray.search.job import Job
from fewshot_ray.search.leaderboard import contenders, control_id, leaderboard, tuned_plain, winner
from fewshot_ray.search.sweep_folder import Kind, SweepFolder, TrialRecord, trial_id
from fewshot_ray.search.winner import trial_tree
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.trial.compose import PLAIN, has_plain, plain, plain_preset, plain_values, preset_values, with_values

LABELS = {"preset": "the methods' preset", "plain": "plain fine-tuning", "file": "the file's values", "sampler": "sampler"}


def _folds(file: FileSpec) -> int:
    return file.target.holdout.crossfit if isinstance(file.target.holdout, CrossFit) else 1


def search_job(document: Document, file: FileSpec, proposal: Proposal) -> Job:
    """The job of a proposal."""
    base = plain(document) if proposal.origin == PLAIN_ORIGIN and not has_plain(document) else document
    tree = with_values(base, proposal.values).tree
    return Job(
        id=trial_id(proposal.number),
        number=proposal.number,
        kind="search",
        origin=proposal.origin,
        label=f"as {proposal.taken_from}" if proposal.taken_from else LABELS[proposal.origin],
        tree=tree,
        seed=file.seed,
        last_step=_steps(tree, file),
        folds=_folds(file),
        params=proposal.values,
    )


def first_trials(document: Document, file: FileSpec) -> list[tuple[dict[str, Any], str]]:
    """Values and origins of the trials before the sampler's: the methods' preset and plain fine-tuning."""
    preset, control = preset_values(document), plain_preset(document)
    is_plain = has_plain(document) and preset == control
    first: list[tuple[dict[str, Any], str]] = []
    if not preset:
        first.append(({}, PLAIN_ORIGIN if is_plain else "file"))
    elif file.search.include_preset:
        first.append((preset, PLAIN_ORIGIN if is_plain else "preset"))
    if file.search.include_plain and not is_plain:
        first.append((control, PLAIN_ORIGIN))
    return first


def after_search(folder: SweepFolder, file: FileSpec, *, plain_is_over: bool = False) -> list[Job]:
    """The jobs once every trial of the search has ended, as far as is known which they are.

    Reruns that choose among several winners come first; then those that report the chosen one, with their controls, and its refit.
    `plain_is_over`: whether plain fine-tuning's own search is over, before which tuned controls aren't known.
    """
    rows = leaderboard(folder, file.search)
    best, confirm = contenders(rows, file.search), file.search.confirm
    tree_of = cache(lambda source_id: trial_tree(folder, source_id))  # for all jobs from a trial its spec is read once
    jobs: list[Job] = []
    if confirm is not None and len(best) > 1:
        jobs = [_rerun(file, row.trial, tree_of(row.trial.id), seed) for row in best for seed in confirm.choosing]
        if any((done := folder.record(job.id)) is None or done.state == "RUNNING" for job in jobs):
            return jobs
    if (chosen := winner(rows)) is None:
        return []
    if confirm is not None:
        tuned = confirm.plain == "tuned"
        best_plain = tuned_plain(rows, file.search) if tuned and plain_is_over else None
        for seed in confirm.reporting:
            jobs.append(_rerun(file, chosen.trial, tree_of(chosen.trial.id), seed))
            if PLAIN in jobs[-1].tree["method"]:
                continue
            if best_plain is not None:
                jobs.append(_tuned_control(file, chosen.trial, best_plain.trial, tree_of(best_plain.trial.id), seed))
            elif not tuned:
                jobs.append(_control(file, chosen.trial, tree_of(chosen.trial.id), seed))
    if isinstance(file.target.holdout, CrossFit):
        jobs.append(_refit(file, chosen.trial, tree_of(chosen.trial.id)))
    return jobs


def rerun_steps(best_step: int, *, steps: int, every: int) -> int:
    """The last step of a rerun: half as far again as the search's best evaluation, rounded up to an evaluation, at most `steps`.

    What it is cut of is a course that has turned: the search went on from there and found nothing better.
    """
    return min(steps, -(-3 * best_step // (2 * every)) * every)


def _rerun(file: FileSpec, source: TrialRecord, tree: dict[str, Any], seed: int) -> Job:
    """A trial of the search, of that tree, again with another seed."""
    name, label = f"confirm-{source.id}-seed{seed}", f"{source.id} again, seed {seed}"
    return _seeded(file, name, "confirm", source.id, label, tree, seed, source.params, source.best_step)


def _control(file: FileSpec, source: TrialRecord, tree: dict[str, Any], seed: int) -> Job:
    """Plain fine-tuning with the `train` section of a trial of that tree.

    It goes to its end: when plain fine-tuning is at its best with these values, no trial of the search has told.
    """
    name, label = control_id(source.id, seed), f"plain fine-tuning as {source.id}, seed {seed}"
    plain_tree = {**tree, "method": {PLAIN: {}}}
    return _seeded(file, name, "control", source.id, label, plain_tree, seed, plain_values(source.params), None)


def _tuned_control(file: FileSpec, source: TrialRecord, tuned: TrialRecord, tree: dict[str, Any], seed: int) -> Job:
    """The best trial of plain fine-tuning's own search, of that tree, again with another seed."""
    name, label = control_id(source.id, seed, tuned.id), f"plain fine-tuning as {tuned.id}, seed {seed}"
    return _seeded(file, name, "control", source.id, label, tree, seed, tuned.params, tuned.best_step)


def _steps(tree: Mapping[str, Any], file: FileSpec) -> int:
    steps: int = tree.get("train", {}).get("steps", file.train.steps)
    return steps


def _seeded(
    file: FileSpec,
    name: str,
    kind: Kind,
    origin: str,
    label: str,
    tree: dict[str, Any],
    seed: int,
    params: Mapping[str, Any],
    best_step: int | None,
) -> Job:
    """A job on a fresh seed, as far as a configuration that was best at `best_step` needs."""
    steps = _steps(tree, file)
    last_step = steps if best_step is None else rerun_steps(best_step, steps=steps, every=file.evaluate.every)
    return Job(name, None, kind, origin, label, tree, seed, last_step, _folds(file), params=params)


def _refit(file: FileSpec, winner: TrialRecord, tree: dict[str, Any]) -> Job:
    """The winner, of that tree, trained on all images for its best number of steps."""
    assert winner.best_step is not None
    return Job(
        id=f"refit-{winner.id}",
        number=None,
        kind="refit",
        origin=winner.id,
        label=f"{winner.id} on all images",
        tree=tree,
        seed=winner.seed,
        last_step=winner.best_step,
        folds=1,
        refit_steps=winner.best_step,
        params=winner.params,
    )
