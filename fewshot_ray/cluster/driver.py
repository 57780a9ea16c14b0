"""Runs a sweep, from its start or where it was interrupted, to its leaderboard."""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from rich.console import Console

from fewshot_ray.cluster.activities import Activities
from fewshot_ray.cluster.actors import TrialActor, reserved
from fewshot_ray.cluster.ending import EVERYBODY, start_messenger
from fewshot_ray.cluster.needs import JOIN_SEC
from fewshot_ray.cluster.placement import Growth
from fewshot_ray.cluster.ray_log import ray_log
from fewshot_ray.cluster.session import check_resources, largest_memory, machines, ray_session, trials_on_nodes
from fewshot_ray.cluster.signals import Interrupted, signals_end
from fewshot_ray.cluster.stages import measure_source, prepare_stages
from fewshot_ray.cluster.tune import RayLost, Silent, SweepScheduler, SweepSearcher, Watch
from fewshot_ray.cluster.workers import run_with_workers
from fewshot_ray.errors import FullError, UserError
from fewshot_ray.patience import LONG_PATIENCE_SEC, fault_of_the_place, is_full, patience
from fewshot_ray.report.page import write_page
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.tables import write_csv
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.report.terminal import doing, plain_console
from fewshot_ray.search.inputs import check_inputs
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.lease import Lease
from fewshot_ray.search.opened import Opened, put_on_record
from fewshot_ray.search.packing import MOST_ON_A_GPU
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import ResourcesSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.compose import compose, search_trials
from fewshot_ray.trial.ranking import Ranking

__all__ = ["Interrupted", "run_sweep", "write_results"]

MOST_RESTARTS = 3
"""Largest number of restarts of a local Ray without an evaluation in between."""


def run_sweep(opened: Opened, *, address: str | None = None, console: Console | None = None, nodes: Growth | None = None) -> None:
    """Run the rest of a sweep, on the Ray at `address`, on an initialised one, or on a local one that is started.

    `nodes`: limits that the cluster may grow to; None where it doesn't grow.

    After Ctrl-C or SIGTERM the trials save and the sweep ends (Interrupted); a second one ends it at once. A local Ray that dies is
    replaced. Raises UserError, also where another driver runs the sweep. After any end the sweep can be resumed.
    """
    console = console or plain_console()
    folder = opened.folder.folder
    with patience(LONG_PATIENCE_SEC), Lease(folder) as lease, ray_log(folder) as log_again:
        put_on_record(opened)  # after the lease, so that no other driver runs it
        restarts = 0
        while (lost := _run_on_ray(opened, address, console, lease, nodes, log_again)) is not None:
            restarts = 1 if lost.progressed else restarts + 1
            if restarts > MOST_RESTARTS:
                raise UserError(f"Ray's processes on this machine were lost {restarts} times in a row: is there too little memory?")
            console.print("Ray's processes on this machine were lost; starting anew")
    write_results(opened)


def _run_on_ray(
    opened: Opened, address: str | None, console: Console, lease: Lease, nodes: Growth | None, log_again: Callable[[], None]
) -> RayLost | None:
    """Run the rest of a sweep on one Ray; returns RayLost where a local Ray was lost, else None."""
    is_own = False
    try:
        with ExitStack() as stack:
            with doing(console, f"joining the Ray at {address}" if address else "starting Ray"):
                is_own = stack.enter_context(ray_session(address, dashboard=opened.file.resources.workers > 1))
            log_again()
            watch = Watch(ray.get_runtime_context().get_node_id())
            resources, begun = opened.file.resources, bool((opened.folder.folder / "trials").names())
            fits = check_resources(resources, begun=begun, most=nodes, join_sec=JOIN_SEC if address else 0.0, say=console.print)
            if nodes is not None:  # as many trials wait as may fit, so that the cluster grows at once
                os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(fits * MOST_ON_A_GPU)
            prepare_stages(opened, console, watch)
            measure_source(opened, console, watch)
            _run_trials(opened, fits, console, lease, watch, nodes)
    except RayLost as lost:
        if not is_own:
            raise UserError(
                "the Ray node that the sweep was driven from is gone; `ray start` it again, then `fewshot-ray resume` goes on"
            ) from None
        return lost
    return None


def _run_trials(opened: Opened, fits: int, console: Console, lease: Lease, watch: Watch, nodes: Growth | None) -> None:
    file = opened.file
    trials = search_trials(opened.document, file)
    if trials < file.search.trials:
        console.print(f"search.trials is {file.search.trials}; there are {trials} configurations, each trained once", highlight=False)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="fewshot-ray-tune-", ignore_cleanup_errors=True))
        steps = compose(Document(next(iter(endpoint_trees(opened.document.tree))), "spec")).file.train.steps
        progress = stack.enter_context(Progress(steps, ranking=Ranking.of(file.search), console=console))
        # Closed also where a signal cuts the last upload short.
        journal = stack.enter_context(closing(Journal(opened.folder.folder)))
        sweep = _open_sweep(opened, journal, progress, fits, lease)
        messenger = start_messenger()
        watch.looks = _looks(sweep, messenger, Activities(messenger, progress.at), nodes)
        received: list[int] = []
        try:
            with warnings.catch_warnings(), signals_end(sweep, messenger) as received:
                warnings.simplefilter("ignore")
                _fit(_tuner(sweep, messenger, watch, scratch), received)
        except (TuneError, OSError) as error:
            watch.check()
            raise _underlying(error, opened) from error
        except RayLost as lost:
            lost.progressed = sweep.progressed
            raise
        finally:
            with suppress(RayError):  # where Ray itself is gone
                ray.kill(messenger)
            sweep.abandon()
    if not sweep.done:
        raise _unfinished(sweep, received)
    sweep.kept.tidy()  # the workers have ended by now


def _open_sweep(opened: Opened, journal: Journal, progress: Progress, fits: int, lease: Lease) -> Sweep:
    """The sweep's state machine. `fits`: trials that fit on Ray at the same time."""

    def may_begin() -> None:  # the inputs may have changed since the last trial began
        check_inputs(opened.folder.folder, opened.document.tree)

    return Sweep(
        opened.document,
        opened.file,
        opened.folder,
        journal,
        progress,
        Boards(opened.folder),
        concurrent=min(fits, opened.file.search.concurrent or fits),
        may_write=lease.check,
        may_begin=may_begin,
    )


def _looks(sweep: Sweep, messenger: Any, activities: Activities, nodes: Growth | None) -> list[Callable[[], None]]:
    """What is done every WATCH_SEC. How many trials run is decided at once, too."""
    file = sweep.file
    sweep.packing.most_memory_bytes = largest_memory()

    def end_hopeless() -> None:
        if sweep.hopeless is not None:
            messenger.say.remote(EVERYBODY, sweep.hopeless)

    def count_nodes() -> None:
        packing, whole = sweep.packing, sum(running.part.gpus >= 1 for running in sweep.running.values())
        with suppress(UserError):  # no trial fits at the moment: they wait
            fits = packing.at_once(trials_on_nodes(file.resources, begun=True, most=nodes, part=packing.part()), whole)
            sweep.concurrent = min(fits, file.search.concurrent or fits)

    def count_used() -> None:
        sweep.budget.nodes, sweep.budget.gpus = machines()
        sweep.budget.look(record=False)  # a driver that has lost its lease must not write

    count_nodes()
    return [activities.look, end_hopeless, count_used, count_nodes]


def _tuner(sweep: Sweep, messenger: Any, watch: Watch, scratch: str) -> tune.Tuner:
    """Tune, which asks the sweep for trials and tells it their results. `scratch`: folder of Tune's own state, which isn't needed."""
    resources = sweep.file.resources
    shared = {"folder": sweep.folder.folder.url, "scratch": scratch, "messenger": messenger, "resources": resources.model_dump()}
    return tune.Tuner(
        _trainable(resources),
        tune_config=tune.TuneConfig(
            search_alg=SweepSearcher(sweep, shared),
            scheduler=SweepScheduler(sweep, messenger),
            num_samples=-1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=sweep.file.name,
            storage_path=scratch,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=-1),  # the sweep counts them: `Sweep.lost`
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[Silent(), watch],
        ),
    )


def _fit(tuner: tune.Tuner, received: list[int]) -> None:
    """Run the tuner. After a second signal, errors of Tune's own cleanup, which it interrupts, are replaced by Interrupted."""
    try:
        tuner.fit()
    except BaseException:
        if len(received) > 1:
            raise Interrupted(received[-1]) from None
        raise


def _underlying(error: BaseException, opened: Opened) -> BaseException:
    """The UserError or full disk that caused Tune's error, as a UserError; else the error itself."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, UserError) and not is_full(found):
        found = found.__cause__ or found.__context__
    if found is None:
        return error
    if not isinstance(found, UserError):  # of Tune's own state
        found = FullError(f"{tempfile.gettempdir()}: is full ({found}); freeing space there, or another place in TMPDIR, is right")
    fault = fault_of_the_place(found)
    return found if fault is None else type(fault)(f"{found}; {_goes_on(opened)}")


def _unfinished(sweep: Sweep, received: list[int]) -> BaseException:
    """The exception for a sweep that ended and isn't done."""
    if sweep.hopeless:
        return UserError(
            f"{sweep.folder.folder.url}: {sweep.hopeless}; the file put right, under another name, is right: where a loss isn't finite, "
            "lower values for train.lr"
        )
    if received or not (sweep.halted or sweep.left):
        return Interrupted(next(iter(received), signal.SIGINT))
    if sweep.halted:
        return FullError(f"{sweep.halted}; {_goes_on(sweep)}")
    reasons = "; ".join(f"{trial_id} stays open ({reason})" for trial_id, reason in sweep.left.items())
    return UserError(f"{reasons}; when the machine has what they need, {_goes_on(sweep)}")


def _goes_on(sweep: Sweep | Opened) -> str:
    return f"`fewshot-ray resume {sweep.folder.folder.url}` goes on"


def _trainable(resources: ResourcesSpec) -> Any:
    if resources.workers == 1:
        return tune.with_resources(TrialActor, reserved)
    # The driver function only waits: a reserved CPU would be missing to its workers, and Ray refuses to reserve nothing at all.
    return tune.with_resources(run_with_workers, {"cpu": 0, "memory": 1})


def write_results(opened: Opened) -> None:
    """Write leaderboard.csv and report.html."""
    search = opened.file.search
    write_csv(opened.folder.folder, leaderboard(opened.folder, search), search.objectives)
    write_page(opened.folder, search, title=opened.file.name)
