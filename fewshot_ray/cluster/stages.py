"""Prepares what the trials of a sweep share, in a task of Ray, before they start."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console

from fewshot_ray.cluster.actors import build_stages
from fewshot_ray.cluster.lost_workers import error_line
from fewshot_ray.cluster.tune import WATCH_SEC, Watch
from fewshot_ray.errors import UserError
from fewshot_ray.report.terminal import doing
from fewshot_ray.search.opened import Opened
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.compose import compose


def prepare_stages(opened: Opened, console: Console, watch: Watch) -> None:
    """Compute the stages that trials share, at every end of the ranges, since a range may decide which stages there are."""
    resources = opened.file.resources
    trees = {to_yaml(tree): tree for tree in endpoint_trees(opened.document.tree) if _preparing(tree)}
    if not trees:
        return
    task = build_stages.options(num_cpus=resources.cpus, num_gpus=resources.gpus)
    names = sorted({name for tree in trees.values() for name in _preparing(tree)})
    with doing(console, f"preparing what the trials share ({', '.join(names)})"):
        for tree in trees.values():
            result = task.remote({"tree": tree, "folder": opened.folder.folder.url})
            while not ray.wait([result], timeout=WATCH_SEC)[0]:
                watch.check()
            try:
                problem = ray.get(result)
            except RayError as error:  # its worker was lost, also in Ray's retries
                watch.check()
                raise UserError(f"what the trials share could not be prepared: {error_line(error)}") from error
            if problem:
                raise UserError(problem)


def _preparing(tree: dict[str, Any]) -> list[str]:
    """The methods that prepare something before the trials start."""
    return [name for name, config in compose(Document(tree, "stages")).methods.items() if config.prepares]
