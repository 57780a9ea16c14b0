"""Runs a sweep, from its start or where it was interrupted, to its leaderboard."""

from __future__ import annotations

import logging
import math
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.error import TuneError
from rich.console import Console

from fewshot_ray.cluster.activities import Activities
from fewshot_ray.cluster.actors import TrialActor, build_stages
from fewshot_ray.cluster.ending import EVERYBODY, start_messenger
from fewshot_ray.cluster.lost_workers import error_line
from fewshot_ray.cluster.needs import JOIN_SEC
from fewshot_ray.cluster.placement import Growth
from fewshot_ray.cluster.ray_log import ray_log
from fewshot_ray.cluster.session import check_resources, ray_session, trials_on_nodes
from fewshot_ray.cluster.tune import WATCH_SEC, RayLost, Silent, SweepScheduler, SweepSearcher, Watch
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
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.winner import bounds
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.sections import ResourcesSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.compose import compose, search_trials
from fewshot_ray.trial.ranking import Ranking

__all__ = ["Interrupted", "run_sweep", "write_results"]

MOST_RESTARTS = 3
"""Largest number of restarts of a local Ray without an evaluation in between."""


class Interrupted(KeyboardInterrupt):
    """The sweep was ended by a signal; it can be resumed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


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
                os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(fits)
            _build_stages(opened, console, watch)
            _run_trials(opened, fits, console, lease, watch, grows=nodes is not None)
    except RayLost as lost:
        if not is_own:
            raise UserError(
                "the Ray node that the sweep was driven from is gone; `ray start` it again, then `fewshot-ray resume` goes on"
            ) from None
        return lost
    return None


def _build_stages(opened: Opened, console: Console, watch: Watch) -> None:
    """Compute the stages that trials share, at every end of the ranges, since a range may decide which stages there are."""
    resources = opened.file.resources
    trees = {to_yaml(tree): tree for tree in endpoint_trees(opened.document.tree) if _preparing(tree)}
    if not trees:
        return
    task = build_stages.options(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)
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


def _run_trials(opened: Opened, fits: int, console: Console, lease: Lease, watch: Watch, *, grows: bool) -> None:
    file = opened.file
    at_most = file.search.concurrent or math.inf
    steps = compose(Document(next(iter(endpoint_trees(opened.document.tree))), "spec")).file.train.steps
    trials = search_trials(opened.document, file)
    if trials < file.search.trials:
        console.print(f"search.trials is {file.search.trials}; there are {trials} configurations, each trained once", highlight=False)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="fewshot-ray-tune-", ignore_cleanup_errors=True))
        progress = stack.enter_context(Progress(steps, ranking=Ranking.of(file.search), console=console))
        # Closed also where a signal cuts the last upload short.
        journal = stack.enter_context(closing(Journal(opened.folder.folder)))

        def may_begin() -> None:  # the inputs may have changed since the last trial began
            check_inputs(opened.folder.folder, opened.document.tree)

        boards = Boards(opened.folder)
        concurrent = int(min(fits, at_most))
        sweep = Sweep(
            opened.document,
            file,
            opened.folder,
            journal,
            progress,
            boards,
            concurrent=concurrent,
            may_write=lease.check,
            may_begin=may_begin,
        )

        def count_nodes() -> None:
            with suppress(UserError):  # no trial fits at the moment: they wait
                sweep.concurrent = int(min(trials_on_nodes(file.resources, begun=True), at_most))

        messenger = start_messenger()

        def end_hopeless() -> None:
            if sweep.hopeless is not None:
                messenger.say.remote(EVERYBODY, sweep.hopeless)

        activities = Activities(messenger, progress.at)
        watch.looks = [activities.look, end_hopeless] if grows else [activities.look, end_hopeless, count_nodes]
        resources = file.resources.model_dump()
        shared = {"folder": opened.folder.folder.url, "scratch": scratch, "messenger": messenger, "resources": resources}
        tuner = tune.Tuner(
            _trainable(file.resources),
            tune_config=tune.TuneConfig(
                search_alg=SweepSearcher(sweep, shared),
                scheduler=SweepScheduler(sweep, messenger),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=file.name,
                storage_path=scratch,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=-1),  # the sweep counts them: `Sweep.lost`
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                callbacks=[Silent(), watch],
            ),
        )
        try:
            with warnings.catch_warnings(), _signals_end(sweep, messenger) as received:
                warnings.simplefilter("ignore")
                _fit(tuner, received)
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


def _fit(tuner: tune.Tuner, received: list[int]) -> None:
    """Run the tuner. After a second signal, errors of Tune's own cleanup, which it interrupts, are replaced by Interrupted."""
    try:
        tuner.fit()
    except BaseException:
        if len(received) > 1:
            raise Interrupted(received[-1]) from None
        raise


@contextmanager
def _signals_end(sweep: Sweep, messenger: Any) -> Iterator[list[int]]:
    """Context in which the first SIGINT or SIGTERM lets the trials save and end, and the second raises Interrupted; yields those received.

    Has no effect outside of the main thread, which alone may set signal handlers.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def close(name: str) -> None:
        sweep.progress.say(f"{name}: the trials save where they are, then the sweep ends; once more ends it at once")
        messenger.say.remote(EVERYBODY, f"the sweep was ended by {name}")

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # see `_fit`
            raise Interrupted(number)
        sweep.closing = True
        # In a thread, since the interrupted code may hold a lock.
        threading.Thread(target=close, args=("Ctrl-C" if number == signal.SIGINT else "SIGTERM",), daemon=True).start()

    try:
        for number in signals:
            signal.signal(number, on_signal)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        return tune.with_resources(TrialActor, {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker})
    # The driver function only waits: a reserved CPU would be missing to its workers, and Ray refuses to reserve nothing at all.
    return tune.with_resources(run_with_workers, {"cpu": 0, "memory": 1})


def write_results(opened: Opened) -> None:
    """Write leaderboard.csv and report.html."""
    objectives = opened.file.search.objectives
    rows = leaderboard(opened.folder, objectives, bounds(opened.file))
    write_csv(opened.folder.folder, rows, objectives)
    write_page(opened.folder, objectives, bounds(opened.file), title=opened.file.name)
