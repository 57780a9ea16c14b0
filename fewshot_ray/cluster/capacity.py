"""What a cluster file's nodes hold at most, beside what a trial asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

from fewshot_ray.cluster.cluster_file import ClusterFile, NodeType
from fewshot_ray.errors import UserError
from fewshot_ray.spec.sections import ResourcesSpec

__all__ = ["Growth", "Hourly", "Used", "hourly", "most_nodes", "nodes_for", "nodes_of", "trials_on", "workers_at_once", "workers_on"]


class Growth(TypedDict):
    """What a cluster may grow to, beside what it is; plain JSON."""

    head: Mapping[str, float]
    types: Sequence[tuple[Mapping[str, float], int]]
    """What a node of each type has, and how many there may be."""
    together: int
    """Nodes of all types, beside the head."""


class Used(NamedTuple):
    """Nodes of one type, and the workers on each."""

    node_type: NodeType
    nodes: int
    workers_each: int


class Hourly(NamedTuple):
    """What nodes cost an hour."""

    usd: float
    unknown: tuple[str, ...]
    """Types without a price; `usd` is without them."""


def most_nodes(cluster: ClusterFile) -> Growth | None:
    """What it may grow to; None where the file doesn't say what its nodes have."""
    if not _known(cluster):
        return None
    heads = [dict(node_type.resources) for node_type in cluster.node_types if node_type.is_head]
    types = [(dict(node_type.resources), node_type.most) for node_type in cluster.node_types if node_type.most]
    return {"head": heads[0], "types": types, "together": cluster.most_workers}


def nodes_of(growth: Growth, resources: ResourcesSpec) -> list[tuple[Mapping[str, float], int]]:
    """A node's resources, and how many of it there may be: the head's first, then those that hold most of these workers."""
    nodes: list[tuple[Mapping[str, float], int]] = [(growth["head"], 1)]
    left = growth["together"]
    for node, most in sorted(growth["types"], key=lambda pair: workers_on(pair[0], resources), reverse=True):
        number = min(most, left) if workers_on(node, resources) else 0
        nodes.append((node, number))
        left -= number
    return nodes


def workers_on(node: Mapping[str, float], resources: ResourcesSpec) -> int:
    """How many fit on a node of these resources."""
    return min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in _asked(resources).items())


def trials_on(
    nodes: Sequence[tuple[Mapping[str, float], int]], resources: ResourcesSpec, *, begun: bool = False, where: str = "the cluster"
) -> int:
    """How many trials fit at a time on nodes of these resources, each with how many there are. Raises UserError where not even one does.

    A sweep that has `begun` goes on where a trial fits with `min_workers`: it may have lost a node.
    """
    have = {kind: sum(node.get(kind, 0) * number for node, number in nodes) for kind in ("CPU", "GPU")}
    least = resources.min_workers if begun else resources.workers
    for kind, amount in _asked(resources).items():
        if amount * least > have[kind]:
            raise UserError(
                f"resources: a trial asks for {amount * least:g} {kind}s ({least} workers), {where} has {have[kind]:g}; "
                "at most that would be right"
            )
    # A worker is on one node: two nodes of 2 CPUs hold no worker of 3.
    hold = sum(number * workers_on(node, resources) for node, number in nodes)
    if hold < least:
        each = " and ".join(f"{amount:g} {kind}s" for kind, amount in _asked(resources).items())
        raise UserError(
            f"resources: a trial asks for {least} workers of {each} each, the nodes of {where} hold {hold} of them; "
            "fewer or smaller workers would be right"
        )
    return max(1, hold // resources.workers)


def workers_at_once(cluster: ClusterFile, resources: ResourcesSpec) -> int | None:
    """Workers that fit when every node is up; None where that shows only once the cluster is up.

    Raises UserError where not even one trial's ever do.
    """
    if not _known(cluster):
        return None
    hold = sum(used.nodes * used.workers_each for used in _filled(cluster, resources))
    for kind, amount in _asked(resources).items():
        best = max(cluster.node_types, key=lambda node_type: node_type.resources.get(kind, 0))
        if amount > (has := best.resources.get(kind, 0)):
            field = "gpus_per_worker" if kind == "GPU" else "cpus_per_worker"
            raise UserError(
                f"resources.{field}: a worker asks for {amount:g} {kind}s, no node of {cluster.path} has more than {has:g} ({best.name}); "
                f"{f'at most {has:g}' if has else 'a node type with some'} would be right"
            )
    if hold < resources.workers:
        each = " and ".join(f"{amount:g} {kind}s" for kind, amount in _asked(resources).items())
        counts = ", ".join(f"{node_type.most} {node_type.name}" for node_type in cluster.node_types if node_type.most)
        field = "max_workers" if cluster.has_ssh else "maxReplicas"
        raise UserError(
            f"resources.workers: a trial asks for {resources.workers} workers of {each} each, {cluster.path} holds {hold} at most "
            f"({field} {cluster.most_workers}: {counts or 'the head alone'}); "
            f"{f'at most {hold}, or a larger {field},' if hold else 'one node type with enough of each'} would be right"
        )
    return hold


def nodes_for(cluster: ClusterFile, resources: ResourcesSpec, workers: int) -> list[Used]:
    """The nodes that `workers` workers take; of a cluster whose nodes' resources are known."""
    used, left = [], workers
    for node_type, nodes, each in _filled(cluster, resources):
        if left > 0 and each > 0:
            needed = min(nodes, -(-left // each))
            used.append(Used(node_type, needed, each))
            left -= needed * each
    return used


def hourly(cluster: ClusterFile, used: list[Used], prices: Mapping[str, float]) -> Hourly:
    """Of the nodes used, of those that are always there, and of the head. `prices`: USD an hour by node type.

    Raises UserError for the price of a type that there isn't.
    """
    names = [node_type.name for node_type in cluster.node_types]
    for name in prices:
        if name not in names:
            raise UserError(f"--price {name}: {cluster.path} has no such node type; one of {', '.join(names)} would be right")
    taken: Counter[str] = Counter()
    for node_type, nodes, _ in used:
        taken[node_type.name] += nodes
    usd, unknown = 0.0, []
    for node_type in cluster.node_types:
        # A worker on the head's own node, or on one that is always there, takes no other.
        if not (number := max(taken[node_type.name], node_type.least + node_type.is_head)):
            continue
        if node_type.name in prices:
            usd += number * prices[node_type.name]
        else:
            unknown.append(node_type.name)
    return Hourly(usd, tuple(unknown))


def _known(cluster: ClusterFile) -> bool:
    """Whether every node's resources are."""
    return all("CPU" in node_type.resources for node_type in cluster.node_types)


def _asked(resources: ResourcesSpec) -> dict[str, float]:
    """By one worker; a driver asks for nothing."""
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in asked.items() if amount > 0}


def _filled(cluster: ClusterFile, resources: ResourcesSpec) -> Iterator[Used]:
    """Every node there may be, with as many workers as it holds: the head's first, then those that hold most."""

    def hold(node_type: NodeType) -> int:
        return workers_on(node_type.resources, resources)

    for node_type in cluster.node_types:
        if node_type.is_head and hold(node_type):
            yield Used(node_type, 1, hold(node_type))
    left = cluster.most_workers
    for node_type in sorted(cluster.node_types, key=hold, reverse=True):
        if (number := min(node_type.most, left)) and hold(node_type):
            yield Used(node_type, number, hold(node_type))
            left -= number
