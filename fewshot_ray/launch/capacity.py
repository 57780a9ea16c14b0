"""How many workers fit on a cluster file's nodes, and what the nodes cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from fewshot_ray.cluster.placement import Growth, asked, workers_on
from fewshot_ray.errors import UserError
from fewshot_ray.launch.cluster_file import ClusterFile, NodeType
from fewshot_ray.spec.sections import ResourcesSpec

__all__ = ["Hourly", "Used", "hourly", "most_nodes", "nodes_for", "workers_at_once"]


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


def workers_at_once(cluster: ClusterFile, resources: ResourcesSpec) -> int | None:
    """Number of workers that fit when all nodes are up; None where the file doesn't say what its nodes have.

    Raises UserError where they are fewer than one trial's.
    """
    if not _known(cluster):
        return None
    hold = sum(used.nodes * used.workers_each for used in _filled(cluster, resources))
    for kind, amount in asked(resources).items():
        best = max(cluster.node_types, key=lambda node_type: node_type.resources.get(kind, 0))
        if amount > (has := best.resources.get(kind, 0)):
            field = "gpus_per_worker" if kind == "GPU" else "cpus_per_worker"
            raise UserError(
                f"resources.{field}: a worker asks for {amount:g} {kind}s, no node of {cluster.path} has more than {has:g} ({best.name}); "
                f"{f'at most {has:g}' if has else 'a node type with some'} would be right"
            )
    if hold < resources.workers:
        each = " and ".join(f"{amount:g} {kind}s" for kind, amount in asked(resources).items())
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
