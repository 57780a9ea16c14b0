"""How many workers and trials fit on a cluster's nodes, and what the nodes cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

from fewshot_ray.cluster.cluster_file import ClusterFile, NodeType
from fewshot_ray.errors import UserError
from fewshot_ray.spec.sections import ResourcesSpec

__all__ = ["Growth", "Hourly", "Used", "hourly", "most_nodes", "nodes_for", "nodes_of", "trials_on", "workers_at_once", "workers_on"]


class Growth(TypedDict):
    """The limits that a cluster may grow to, as plain JSON."""

    head: Mapping[str, float]
    types: Sequence[tuple[Mapping[str, float], int]]
    """Resources of a node and maximum number of nodes, per type."""
    together: int
    """Maximum number of nodes besides the head, over all types."""


class Used(NamedTuple):
    """A number of nodes of one type, and the workers on each."""

    node_type: NodeType
    nodes: int
    workers_each: int


class Hourly(NamedTuple):
    """The price of nodes per hour."""

    usd: float
    unknown: tuple[str, ...]
    """Node types without a price, which `usd` doesn't include."""


def most_nodes(cluster: ClusterFile) -> Growth | None:
    """The limits that a cluster may grow to; None where the file doesn't say what its nodes have."""
    if not _known(cluster):
        return None
    heads = [dict(node_type.resources) for node_type in cluster.node_types if node_type.is_head]
    types = [(dict(node_type.resources), node_type.most) for node_type in cluster.node_types if node_type.most]
    return {"head": heads[0], "types": types, "together": cluster.most_workers}


def nodes_of(growth: Growth, resources: ResourcesSpec) -> list[tuple[Mapping[str, float], int]]:
    """Resources and maximum number of nodes: the head first, then the types with room for most of these workers."""
    nodes: list[tuple[Mapping[str, float], int]] = [(growth["head"], 1)]
    left = growth["together"]
    for node, most in sorted(growth["types"], key=lambda pair: workers_on(pair[0], resources), reverse=True):
        number = min(most, left) if workers_on(node, resources) else 0
        nodes.append((node, number))
        left -= number
    return nodes


def workers_on(node: Mapping[str, float], resources: ResourcesSpec) -> int:
    """Number of workers that fit on a node."""
    return min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in _asked(resources).items())


def trials_on(
    nodes: Sequence[tuple[Mapping[str, float], int]], resources: ResourcesSpec, *, begun: bool = False, where: str = "the cluster"
) -> int:
    """Number of trials that fit at the same time on nodes, given as (resources, number). Raises UserError where none does.

    For a sweep that has `begun` a trial fits with `min_workers`, since a node may have been lost.
    """
    have = {kind: sum(node.get(kind, 0) * number for node, number in nodes) for kind in ("CPU", "GPU")}
    least = resources.min_workers if begun else resources.workers
    for kind, amount in _asked(resources).items():
        if amount * least > have[kind]:
            raise UserError(
                f"resources: a trial asks for {amount * least:g} {kind}s ({least} workers), {where} has {have[kind]:g}; "
                "at most that would be right"
            )
    # A worker must fit on one node: two nodes of 2 CPUs have no room for a worker of 3.
    hold = sum(number * workers_on(node, resources) for node, number in nodes)
    if hold < least:
        each = " and ".join(f"{amount:g} {kind}s" for kind, amount in _asked(resources).items())
        raise UserError(
            f"resources: a trial asks for {least} workers of {each} each, the nodes of {where} hold {hold} of them; "
            "fewer or smaller workers would be right"
        )
    return max(1, hold // resources.workers)


def workers_at_once(cluster: ClusterFile, resources: ResourcesSpec) -> int | None:
    """Number of workers that fit when all nodes are up; None where the file doesn't say what its nodes have.

    Raises UserError where they are fewer than one trial's.
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
    """The nodes that `workers` workers need, for a cluster whose nodes' resources are known."""
    used, left = [], workers
    for node_type, nodes, each in _filled(cluster, resources):
        if left > 0 and each > 0:
            needed = min(nodes, -(-left // each))
            used.append(Used(node_type, needed, each))
            left -= needed * each
    return used


def hourly(cluster: ClusterFile, used: list[Used], prices: Mapping[str, float]) -> Hourly:
    """The price of the used nodes, the minimum of nodes and the head. `prices`: USD per hour by node type.

    Raises UserError for the price of an unknown type.
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
        # Workers on the head, or on nodes that are always up, need no further node.
        if not (number := max(taken[node_type.name], node_type.least + node_type.is_head)):
            continue
        if node_type.name in prices:
            usd += number * prices[node_type.name]
        else:
            unknown.append(node_type.name)
    return Hourly(usd, tuple(unknown))


def _known(cluster: ClusterFile) -> bool:
    """Whether the resources of all node types are known."""
    return all("CPU" in node_type.resources for node_type in cluster.node_types)


def _asked(resources: ResourcesSpec) -> dict[str, float]:
    """The resources of one worker; a driver reserves none."""
    asked = {"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker}
    return {kind: amount for kind, amount in asked.items() if amount > 0}


def _filled(cluster: ClusterFile, resources: ResourcesSpec) -> Iterator[Used]:
    """All nodes with the workers that fit on each: the head first, then the types with room for most."""

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
