"""`fewshot-ray check --cluster`: capacity, time and cost on a cluster that may not be up yet, from its file."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rich.console import Console

from fewshot_ray.cli.check import Say, check_plan
from fewshot_ray.cli.cost import budget_lines, duration
from fewshot_ray.cli.remote import check_there
from fewshot_ray.cluster.needs import check_sources
from fewshot_ray.errors import UserError
from fewshot_ray.launch.capacity import hourly, nodes_for, workers_at_once
from fewshot_ray.launch.cluster_file import ClusterFile, NodeType
from fewshot_ray.launch.head import Head
from fewshot_ray.launch.instances import INSTANCES
from fewshot_ray.launch.package import check_storage, pack
from fewshot_ray.search.packing import auto_lines
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec, ResourcesSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document
from fewshot_ray.writable import check_writable

__all__ = ["check_on_cluster", "cluster_lines", "prices_of"]


def check_on_cluster(document: Document, cluster: ClusterFile, prices: Iterable[str], console: Console) -> int:
    """Print a run's capacity, time and cost on a cluster, then what its head finds of model, images and storage; returns the exit code.

    Raises UserError at the first thing that would stop `launch` or the run. Places that only this machine can't reach don't stop it if the
    head is up.
    """
    say = Say(console)
    document, file = check_document(document)
    price = prices_of(cluster, prices)
    check_storage(document, file)
    with tempfile.TemporaryDirectory() as scratch:
        pack(document, Path(scratch))
    problem = None
    try:
        materials = check_sources(document, file, say)
        measured = check_plan(document, materials, say)
        for topic, text in cluster_lines(file, cluster, price, work_sec=measured.worker_sec, step=measured.speed):
            say(topic, text)
        for topic, text in budget_lines(measured, 1):
            say(topic, text)
    except UserError as error:
        problem = error
        say("here", str(error), "red")
    try:
        check_writable(Folder(file.storage))
        say("storage", f"{file.storage} can be written from here")
    except UserError as error:
        say("storage", f"not from here: {error}", "yellow")
    try:
        Head(cluster).address  # noqa: B018  asks the provider
    except UserError as error:
        say("head", f"not asked: {error}", "yellow")
        if problem is not None:
            raise problem from None
        return 0
    say("head", "is asked what it reaches")
    return check_there(document, file, cluster.path)


def prices_of(cluster: ClusterFile, options: Iterable[str]) -> dict[str, float]:
    """Prices by node type from `TYPE=USD` options. Raises UserError for an invalid one."""
    prices = {}
    for option in options:
        name, _, number = option.rpartition("=")
        try:
            usd = float(number)
        except ValueError:
            usd = math.nan
        names = [node_type.name for node_type in cluster.node_types]
        if name not in names or not 0 <= usd < math.inf:
            raise UserError(f"--price {option}: TYPE=USD would be right, an hour's price of one of {', '.join(names)}")
        prices[name] = usd
    return prices


def cluster_lines(
    file: FileSpec, cluster: ClusterFile, prices: Mapping[str, float], *, work_sec: float, step: str
) -> Iterator[tuple[str, str]]:
    """The lines (topic, text) on capacity, time and cost. Raises UserError where a trial can never run there.

    `work_sec`: time of the whole sweep with one worker at a time, on a machine with this `step`. `prices`: USD per hour by node type.
    """
    resources = file.resources
    hold = workers_at_once(cluster, resources)
    yield "cluster", f"{cluster.name} ({cluster.provider}): {_nodes(cluster)}"
    if hold is None:
        trials = 1
        yield "at once", f"{cluster.path} doesn't say what its nodes have: whether {_asked(resources)} fit shows when it is up"
    else:
        trials = min(hold // resources.workers, file.search.trials, file.search.concurrent or file.search.trials)
        yield "at once", f"{_count(trials, 'trial')} of {_asked(resources)}; the cluster holds {_count(hold, 'such worker')} at most"
    yield from (("packing", line) for line in auto_lines(resources))
    if resources.gpus == 0 and any(node_type.resources.get("GPU") for node_type in cluster.node_types):
        yield "warning", "resources.gpus_per_worker is 0: the nodes' GPUs would be paid for and idle"
    sec = work_sec / (trials * resources.workers)
    yield (
        "time",
        f"at most about {duration(sec)} with {_count(trials, 'trial')} at a time, were its workers as fast as {step}; "
        "nodes take minutes to start, early stopping makes it less",
    )
    if hold is not None:
        yield "cost", _cost(cluster, resources, prices, trials, sec)


def _nodes(cluster: ClusterFile) -> str:
    """All node types with their numbers and resources, in words."""
    parts = []
    for node_type in cluster.node_types:
        if node_type.is_head:
            parts.append(f"1 {_described(node_type)}{'' if node_type.name == 'head' else ' as the head'}")
        if node_type.most:
            count = f"{node_type.least} to {node_type.most}" if node_type.least < node_type.most else str(node_type.most)
            parts.append(f"{count} {_described(node_type)}")
    return f"{', '.join(parts)}; at most {_count(cluster.most_workers, 'node')} beside the head"


def _described(node_type: NodeType) -> str:
    instance = INSTANCES.get(node_type.instance or "")
    have = [_count(amount, kind) for kind, amount in node_type.resources.items() if kind in ("CPU", "GPU")]
    if instance and instance.gpu:
        have[-1] += f" ({instance.gpu})"
    details = [*([node_type.instance] if node_type.instance else []), *have, *(["spot"] if node_type.spot else [])]
    return f"{node_type.name} [{', '.join(details) or 'resources not known'}]"


def _asked(resources: ResourcesSpec) -> str:
    """The resources of one trial, in words."""
    gpus = f" and {_count(resources.gpus, 'GPU')}" if resources.gpus else ""
    return f"{_count(resources.workers, 'worker')} of {_count(resources.cpus, 'CPU')}{gpus}"


def _cost(cluster: ClusterFile, resources: ResourcesSpec, prices: Mapping[str, float], trials: int, sec: float) -> str:
    """The cost of head and needed nodes for the sweep's time, in words."""
    used = nodes_for(cluster, resources, trials * resources.workers)
    price = hourly(cluster, used, prices)
    if price.unknown:
        options = " ".join(f"--price {name}=USD" for name in price.unknown)
        return f"`{options}`, what a node of {'each type' if len(price.unknown) > 1 else 'that type'} costs an hour, tells it"
    nodes = "".join(f" and {nodes} {node_type.name}" for node_type, nodes, _ in used if not node_type.is_head)
    return (
        f"at most about {price.usd * sec / 3600:.2f} USD if that time holds: the head{nodes} at {price.usd:.2f} USD an hour; "
        "disks, storage and traffic come on top"
    )


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' if number != 1 else ''}"
