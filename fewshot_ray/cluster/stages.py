"""Prepares what the trials of a sweep share, in tasks of Ray, before they start."""

from __future__ import annotations

import json
import time
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from fewshot_ray.cluster.actors import PROBLEM, ROW, build_stages, measured_source
from fewshot_ray.cluster.lost_workers import error_line
from fewshot_ray.cluster.tune import WATCH_SEC, Watch
from fewshot_ray.errors import UserError
from fewshot_ray.report.tables import format_metric
from fewshot_ray.report.terminal import doing
from fewshot_ray.search.opened import Opened
from fewshot_ray.search.source_record import put_source_on_record, source_row
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.compose import compose


def prepare_stages(opened: Opened, console: Console, watch: Watch) -> None:
    """Compute the stages that trials share, at every end of the ranges, since a range may decide which stages there are."""
    trees = {to_yaml(tree): tree for tree in endpoint_trees(opened.document.tree) if _preparing(tree)}
    if not trees:
        return
    names = sorted({name for tree in trees.values() for name in _preparing(tree)})
    with doing(console, f"preparing what the trials share ({', '.join(names)})"):
        for tree in trees.values():
            if problem := _done(build_stages, opened, tree, watch):
                raise UserError(problem)


def measure_source(opened: Opened, console: Console, watch: Watch) -> None:
    """Measure the source model and put it on record, unless it is there already or has random weights."""
    if not opened.file.source.pretrained or source_row(opened.folder) is not None:
        return
    started_sec = time.time()
    with doing(console, "measuring the source model"):
        found = _done(measured_source, opened, next(iter(endpoint_trees(opened.document.tree))), watch)
    if PROBLEM in found:
        raise UserError(found[PROBLEM])
    row = put_source_on_record(opened.folder, opened.file, json.loads(found[ROW]), started_sec=started_sec)
    shown = ((name, row.metrics.get(name)) for name in opened.file.search.objectives)
    said = ", ".join(f"{name} {format_metric(value)}" for name, value in shown if value is not None)
    if said:
        console.print(f"the source model: {said}", highlight=False)


def _done(work: Any, opened: Opened, tree: dict[str, Any], watch: Watch) -> Any:
    """What a task of Ray returns, with the resources of a trial's worker."""
    resources = opened.file.resources
    result = work.options(num_cpus=resources.cpus, num_gpus=resources.gpus).remote({"tree": tree, "folder": opened.folder.folder.url})
    while not ray.wait([result], timeout=WATCH_SEC)[0]:
        watch.check()
    try:
        return ray.get(result)
    except RayError as error:  # its worker was lost, also in Ray's retries
        watch.check()
        raise UserError(f"what the trials share could not be prepared: {error_line(error)}") from error


def _preparing(tree: dict[str, Any]) -> list[str]:
    """The methods that prepare something before the trials start."""
    return [name for name, config in compose(Document(tree, "stages")).methods.items() if config.prepares]
