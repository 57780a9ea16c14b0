"""Checks between fields of different sections: each yields the dotted field to put right and the message for it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.spec.wording import nearest, show

PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")


def cross_checks(spec: FileSpec) -> Iterator[tuple[str, str]]:
    """(dotted path, message) for every error between fields of different sections."""
    yield from _secrets(spec)
    yield from _source(spec)
    yield from _holdout(spec)
    yield from _steps(spec)
    yield from _confirm(spec)
    yield from _metrics(spec)
    yield from _workers(spec)
    yield from _budget(spec)


def _secrets(spec: FileSpec) -> Iterator[tuple[str, str]]:
    for path, text in _texts(spec.model_dump(), ""):
        if PASSWORD.search(text):  # the password isn't repeated: messages end up in logs
            yield path, "the URL contains a password, which would end up in files and logs; the store's own variables or files are right"


def _texts(tree: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, str):
        yield path, tree
    elif isinstance(tree, (Mapping, list)):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _texts(value, f"{path}.{key}" if path else str(key))


def _workers(spec: FileSpec) -> Iterator[tuple[str, str]]:
    most = spec.resources.workers
    if spec.resources.min_workers > most:
        yield "resources.min_workers", f"{spec.resources.min_workers} is above resources.workers ({most}); at most {most} is right"
    for name in ("gpus_per_worker", "cpus_per_worker"):
        if getattr(spec.resources, name) == "auto" and most > 1:
            yield f"resources.{name}", f"'auto' is for trials of one worker, and resources.workers is {most}; a number is right"


def _source(spec: FileSpec) -> Iterator[tuple[str, str]]:
    if spec.source.images == "generated" and not spec.source.pretrained:
        yield "source.images", "'generated' needs a pre-trained source.model to generate them; a place is right with source.build"


def _holdout(spec: FileSpec) -> Iterator[tuple[str, str]]:
    shots, holdout = spec.target.shots, spec.target.holdout
    if shots is None:
        return
    if isinstance(holdout, CrossFit) and holdout.crossfit > shots:
        right = f"{{crossfit: {shots}}} or fewer is right" if shots >= 2 else "at least 2 shots, or a folder as holdout, is right"
        yield "target.holdout", f"crossfit: {holdout.crossfit} is more folds than target.shots ({shots}); {right}"
    elif isinstance(holdout, int) and holdout >= shots:
        yield "target.holdout", f"{holdout} of {shots} shots kept back leaves none to train on; fewer than target.shots is right"


def _steps(spec: FileSpec) -> Iterator[tuple[str, str]]:
    steps, every = spec.train.steps, spec.evaluate.every
    if every > steps:
        yield "evaluate.every", f"{every} is above train.steps ({steps}), so nothing would be evaluated; at most {steps} is right"
    if spec.train.lr_warmup_steps > steps:
        yield "train.lr_warmup_steps", f"{spec.train.lr_warmup_steps} is above train.steps ({steps}); at most {steps} is right"
    asha = spec.search.scheduler.asha if spec.search.scheduler else None
    if asha is None:
        return
    path = "search.scheduler.asha.grace_steps"
    if asha.grace_steps % every:
        nearest_multiple = max(1, round(asha.grace_steps / every)) * every
        yield path, f"{asha.grace_steps} is no multiple of evaluate.every ({every}); {nearest_multiple}, for one, is right"
    elif asha.grace_steps > steps:
        yield path, f"{asha.grace_steps} is above train.steps ({steps}), so nothing would be stopped; at most {steps} is right"


def _confirm(spec: FileSpec) -> Iterator[tuple[str, str]]:
    confirm, kept = spec.search.confirm, spec.search.keep_checkpoints
    if confirm is not None and confirm.top > kept:
        yield "search.keep_checkpoints", f"{kept} given, but {confirm.top} winners are confirmed; at least as many is right"
    if confirm is not None and spec.seed in confirm.seeds:
        yield "search.confirm.seeds", f"{spec.seed} is the search's own seed, which chose the winner; other seeds are right"
    if confirm is not None and confirm.plain == "tuned" and "finetune" in spec.method:
        yield (
            "search.confirm.plain",
            "'tuned' searches plain fine-tuning, which is the method itself here; leaving it out is right",
        )


def _budget(spec: FileSpec) -> Iterator[tuple[str, str]]:
    budget, trials = spec.search.budget, spec.search.trials
    if budget is None:
        return
    if trials == 1:
        yield "search.trials", "one trial, which search.budget can't end earlier; the largest number of trials, say 1000, is right"
    if budget.patience is not None and budget.patience >= trials > 1:
        yield (
            "search.budget.patience",
            f"{budget.patience} is not below search.trials ({trials}); fewer are right",
        )
    if budget.gpu_hours is not None and spec.resources.gpus == 0:
        yield "search.budget.gpu_hours", "trials have no GPU (resources.gpus_per_worker is 0), so none would be counted; hours is right"


def _metrics(spec: FileSpec) -> Iterator[tuple[str, str]]:
    search, metrics = spec.search, spec.evaluate.metrics
    named = [(f"search.objectives.{name}", name) for name in search.objectives]
    named += [(f"search.constraints.{name}", name) for name in search.constraints]
    if search.scheduler and search.scheduler.asha and search.scheduler.asha.metric:
        named.append(("search.scheduler.asha.metric", search.scheduler.asha.metric))
    for path, name in named:
        if name not in metrics:
            near = nearest(name, metrics)
            hint = f"did you mean {show(near)}?" if near else f"one of {', '.join(metrics)} is right, or add it there"
            yield path, f"{show(name)} is not among evaluate.metrics; {hint}"
