"""The jobs of a sweep: the search's trials, then reruns (confirmation) with their controls, and the refit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fewshot_ray.search.job import Job
from fewshot_ray.search.leaderboard import contenders, leaderboard, winner
from fewshot_ray.search.study import PLAIN_ORIGIN, Proposal
from fewshot_ray.search.sweep_folder import Kind, SweepFolder, TrialRecord
from fewshot_ray.search.winner import trial_tree
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
    return Job(
        id=trial_id(proposal.number),
        number=proposal.number,
        kind="search",
        origin=proposal.origin,
        label=LABELS[proposal.origin],
        tree=tree,
        seed=file.seed,
        last_step=_steps(tree, file),
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
    """The jobs once every trial of the search has ended, as far as is known which they are.

    Reruns that choose among several winners come first; then those that report the chosen one, with their controls, and its refit.
    """
    rows = leaderboard(folder, file.search)
    best, confirm = contenders(rows, file.search), file.search.confirm
    jobs: list[Job] = []
    if confirm is not None and len(best) > 1:
        jobs = [_rerun(folder, file, row.trial, seed) for row in best for seed in confirm.choosing]
        if any((done := folder.record(job.id)) is None or done.state == "RUNNING" for job in jobs):
            return jobs
    if (chosen := winner(rows)) is None:
        return []
    if confirm is not None:
        jobs += [job for seed in confirm.reporting for job in _arms(folder, file, chosen.trial, seed)]
    if isinstance(file.target.holdout, CrossFit):
        jobs.append(_refit(folder, file, chosen.trial))
    return jobs


def rerun_steps(best_step: int, *, steps: int, every: int) -> int:
    """The last step of a rerun: half as far again as the search's best evaluation, rounded up to an evaluation, at most `steps`.

    What it is cut of is a course that has turned: the search went on from there and found nothing better.
    """
    return min(steps, -(-3 * best_step // (2 * every)) * every)


def _rerun(folder: SweepFolder, file: FileSpec, source: TrialRecord, seed: int) -> Job:
    """A trial of the search again with another seed."""
    assert source.best_step is not None
    tree = trial_tree(folder, source.id)
    steps = rerun_steps(source.best_step, steps=_steps(tree, file), every=file.evaluate.every)
    return _seeded(file, "confirm", source, tree, seed, f"{source.id} again", steps)


def _arms(folder: SweepFolder, file: FileSpec, source: TrialRecord, seed: int) -> Iterator[Job]:
    """A rerun, and its control: plain fine-tuning with the same `train` section, unless the trial is that itself.

    A control goes to its end: when plain fine-tuning is at its best with these values, no trial of the search has told.
    """
    yield _rerun(folder, file, source, seed)
    tree = trial_tree(folder, source.id)
    if PLAIN not in tree["method"]:
        control = {**tree, "method": {PLAIN: {}}}
        yield _seeded(file, "control", source, control, seed, f"plain fine-tuning as {source.id}", _steps(tree, file))


def _steps(tree: Mapping[str, Any], file: FileSpec) -> int:
    steps: int = tree.get("train", {}).get("steps", file.train.steps)
    return steps


def _seeded(file: FileSpec, kind: Kind, source: TrialRecord, tree: dict[str, Any], seed: int, label: str, last_step: int) -> Job:
    return Job(
        id=f"{kind}-{source.id}-seed{seed}",
        number=None,
        kind=kind,
        origin=source.id,
        label=f"{label}, seed {seed}",
        tree=tree,
        seed=seed,
        last_step=last_step,
        folds=_folds(file),
        params=plain_values(source.params) if kind == "control" else source.params,
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
