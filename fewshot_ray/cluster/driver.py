"""Runs a sweep from start, or from where it was left, to its leaderboard."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune
from rich.console import Console

from fewshot_ray.cluster.actors import TrialActor, build_stages, run_with_workers
from fewshot_ray.cluster.journal import Journal
from fewshot_ray.cluster.sweep import Sweep
from fewshot_ray.cluster.tune import SweepScheduler, SweepSearcher
from fewshot_ray.errors import UserError
from fewshot_ray.report.leaderboard import leaderboard, write_csv
from fewshot_ray.report.page import write_page
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.sweep_folder import SweepFolder
from fewshot_ray.report.winner import bounds
from fewshot_ray.spec.document import Document, parse_document, to_yaml
from fewshot_ray.spec.sections import FileSpec, ResourcesSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import absolute_places, check_document, compose

SPEC = "spec.yaml"


@dataclass(frozen=True)
class Opened:
    """A sweep's folder with the document it holds."""

    document: Document
    file: FileSpec
    folder: SweepFolder


def open_sweep(document: Document) -> Opened:
    """The folder of a run's file, made where it isn't there yet. Raises UserError, also where it holds another spec."""
    expanded, file = check_document(absolute_places(document))
    folder = SweepFolder(Folder(file.storage) / file.name)
    text = to_yaml(expanded.tree)
    if not folder.folder.exists(SPEC):
        if folder.folder.names():
            raise UserError(f"storage: {folder.folder.url} holds something else (no {SPEC}); another name or storage would be right")
        folder.folder.write_text(SPEC, text)
        return Opened(expanded, file, folder)
    found = existing_sweep(folder.folder)
    differences = differing_paths(found.document.tree, expanded.tree)
    if differences:
        raise UserError(
            f"{document.name}: {folder.folder.url} holds another spec "
            f"(it differs in {', '.join(differences[:3])}); another name would be right"
        )
    return found


def existing_sweep(folder: Folder) -> Opened:
    """A sweep by its folder. Raises UserError where it is none."""
    if not folder.exists(SPEC):
        raise UserError(f"{folder.url}: no sweep there ({SPEC} is missing); the folder that `fewshot-ray run` printed would be right")
    document = parse_document(folder.read_text(SPEC), f"{folder.url}/{SPEC}")
    expanded, file = check_document(document)
    return Opened(expanded, file, SweepFolder(folder))


def differing_paths(a: Any, b: Any, path: str = "") -> list[str]:
    """Dotted paths at which two trees differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [
            difference
            for key in [*a, *(key for key in b if key not in a)]
            for difference in differing_paths(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if a == b else [path]


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """A Ray to run on: one that is there (`address`), or one of our own that ends with the sweep."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.05")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    for name in ("ray.tune", "ray._private.authentication"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, ValueError) as error:
        raise UserError(
            f"--address {address}: no Ray answers there ({str(error).splitlines()[0]}); `ray status` shows a cluster's"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(resources: ResourcesSpec) -> int:
    """How many trials fit at a time. Raises UserError where not even one ever will."""
    have = ray.cluster_resources()
    asked = {"CPU": resources.cpus_per_worker * resources.workers, "GPU": resources.gpus_per_worker * resources.workers}
    fits = []
    for kind, amount in asked.items():
        if amount > have.get(kind, 0):
            raise UserError(
                f"resources: a trial asks for {amount:g} {kind}s ({resources.workers} workers), the cluster has {have.get(kind, 0):g}; "
                f"at most that would be right"
            )
        if amount > 0:
            fits.append(int(have[kind] / amount + 1e-9))
    return max(1, min(fits))


def run_sweep(opened: Opened, *, address: str | None = None, console: Console | None = None) -> None:
    """Run all that is left of a sweep. Raises UserError; KeyboardInterrupt leaves it resumable."""
    console = console or Console()
    with ray_session(address):
        fits = check_resources(opened.file.resources)
        concurrent = min(fits, opened.file.search.concurrent or fits)
        _build_stages(opened, console)
        _run_trials(opened, concurrent, console)
    write_results(opened)


def _build_stages(opened: Opened, console: Console) -> None:
    """Where a range decides what is shared (a method that is off at one end), every end's stages are built."""
    resources = opened.file.resources
    trees = {to_yaml(tree): tree for tree in endpoint_trees(opened.document.tree)}
    task = build_stages.options(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
    with console.status("preparing what the trials share"):
        for tree in trees.values():
            problem = ray.get(task.remote({"tree": tree, "folder": opened.folder.folder.url}))
            if problem:
                raise UserError(problem)


def _run_trials(opened: Opened, concurrent: int, console: Console) -> None:
    file = opened.file
    steps = compose(Document(next(iter(endpoint_trees(opened.document.tree))), "spec")).file.train.steps
    scratch = tempfile.mkdtemp(prefix="fewshot-ray-tune-")
    done = sum(record.state != "RUNNING" for record in opened.folder.trials())
    with Progress(file.search.trials, steps, objectives=file.search.objectives, done_trials=done, console=console) as progress:
        sweep = Sweep(opened.document, file, opened.folder, Journal(opened.folder.folder), progress, concurrent=concurrent)
        shared = {"folder": opened.folder.folder.url, "scratch": scratch}
        tuner = tune.Tuner(
            _trainable(file.resources),
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(sweep, shared), scheduler=SweepScheduler(sweep), num_samples=-1, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=file.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=file.search.retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[],
            ),
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tuner.fit()
        finally:
            interrupted = bool(sweep.running)
            sweep.abandon()
            shutil.rmtree(scratch, ignore_errors=True)
    if interrupted:
        raise KeyboardInterrupt


def _trainable(resources: ResourcesSpec) -> Any:
    if resources.workers == 1:
        return tune.with_resources(TrialActor, {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker})
    # The driver function only waits: a CPU that it reserved would be missing to the workers it starts, and nothing at all is refused.
    return tune.with_resources(run_with_workers, {"cpu": 0, "memory": 1})


def write_results(opened: Opened) -> None:
    """leaderboard.csv and report.html."""
    objectives = opened.file.search.objectives
    rows = leaderboard(opened.folder, objectives, bounds(opened.file))
    write_csv(opened.folder.folder, rows, objectives)
    write_page(opened.folder, objectives, bounds(opened.file), title=opened.file.name)
