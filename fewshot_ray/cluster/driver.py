"""Runs a sweep from start, or from where it was left, to its leaderboard."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import tune
from ray.tune.error import TuneError
from rich.console import Console

from fewshot_ray.cluster.actors import TrialActor, build_stages, run_with_workers
from fewshot_ray.cluster.journal import Journal
from fewshot_ray.cluster.lease import Lease
from fewshot_ray.cluster.opened import Opened, put_on_record
from fewshot_ray.cluster.sweep import Sweep
from fewshot_ray.cluster.tune import SweepScheduler, SweepSearcher
from fewshot_ray.errors import UserError
from fewshot_ray.patience import LONG_PATIENCE_SEC, patience
from fewshot_ray.report.leaderboard import leaderboard, write_csv
from fewshot_ray.report.page import write_page
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.winner import bounds
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.sections import ResourcesSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.compose import compose

__all__ = ["check_resources", "ray_session", "run_sweep", "write_results"]


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
    worker = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    for kind, amount in worker.items():
        if amount * resources.workers > have.get(kind, 0):
            raise UserError(
                f"resources: a trial asks for {amount * resources.workers:g} {kind}s ({resources.workers} workers), "
                f"the cluster has {have.get(kind, 0):g}; at most that would be right"
            )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A worker is on one node: two nodes of 2 CPUs hold no worker of 3.
    hold = [min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in worker.items() if amount > 0) for node in nodes]
    if sum(hold) < resources.workers:
        each = " and ".join(f"{amount:g} {kind}s" for kind, amount in worker.items() if amount > 0)
        raise UserError(
            f"resources: a trial asks for {resources.workers} workers of {each} each, the cluster's nodes hold {sum(hold)} of them; "
            f"fewer or smaller workers would be right"
        )
    return sum(hold) // resources.workers


def run_sweep(opened: Opened, *, address: str | None = None, console: Console | None = None) -> None:
    """Run all that is left of a sweep. Raises UserError, also where another driver runs it; KeyboardInterrupt leaves it resumable."""
    console = console or Console()
    with patience(LONG_PATIENCE_SEC), Lease(opened.folder.folder) as lease, ray_session(address):
        put_on_record(opened)  # now that nobody else runs it
        fits = check_resources(opened.file.resources)
        concurrent = min(fits, opened.file.search.concurrent or fits)
        _build_stages(opened, console)
        _run_trials(opened, concurrent, console, lease)
    write_results(opened)


def _build_stages(opened: Opened, console: Console) -> None:
    """Where a range decides what is shared (a method that is off at one end), every end's stages are built."""
    resources = opened.file.resources
    trees = {to_yaml(tree): tree for tree in endpoint_trees(opened.document.tree) if _prepares(tree)}
    if not trees:
        return
    task = build_stages.options(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
    with console.status("preparing what the trials share"):
        for tree in trees.values():
            problem = ray.get(task.remote({"tree": tree, "folder": opened.folder.folder.url}))
            if problem:
                raise UserError(problem)


def _prepares(tree: dict[str, Any]) -> bool:
    return any(config.prepares for config in compose(Document(tree, "stages")).methods.values())


def _run_trials(opened: Opened, concurrent: int, console: Console, lease: Lease) -> None:
    file = opened.file
    steps = compose(Document(next(iter(endpoint_trees(opened.document.tree))), "spec")).file.train.steps
    scratch = tempfile.mkdtemp(prefix="fewshot-ray-tune-")
    done = sum(record.state != "RUNNING" for record in opened.folder.trials())
    with Progress(file.search.trials, steps, objectives=file.search.objectives, done_trials=done, console=console) as progress:
        journal = Journal(opened.folder.folder)
        sweep = Sweep(opened.document, file, opened.folder, journal, progress, concurrent=concurrent, may_write=lease.check)
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
        except TuneError as error:
            raise _underlying(error) from error
        finally:
            sweep.abandon()
            journal.close()
            shutil.rmtree(scratch, ignore_errors=True)
    if not sweep.done:
        raise KeyboardInterrupt
    sweep.kept.tidy()  # the workers have ended by now


def _underlying(error: BaseException) -> BaseException:
    """The UserError within what Tune raises where the driver can't go on (a storage that is full), or the error itself."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError):
        found = found.__cause__ or found.__context__
    return found or error


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
