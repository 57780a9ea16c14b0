"""How many workers and trials fit on nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from fewshot_ray.errors import UserError
from fewshot_ray.search.packing import Part
from fewshot_ray.spec.sections import ResourcesSpec

__all__ = ["Growth", "asked", "nodes_of", "trials_on", "workers_on"]


class Growth(TypedDict):
    """The limits that a cluster may grow to, as plain JSON."""

    head: Mapping[str, float]
    types: Sequence[tuple[Mapping[str, float], int]]
    """Resources of a node and maximum number of nodes, per type."""
    together: int
    """Maximum number of nodes besides the head, over all types."""


def nodes_of(growth: Growth, resources: ResourcesSpec) -> list[tuple[Mapping[str, float], int]]:
    """Resources and maximum number of nodes: the head first, then the types with room for most of these workers."""
    nodes: list[tuple[Mapping[str, float], int]] = [(growth["head"], 1)]
    left = growth["together"]
    for node, most in sorted(growth["types"], key=lambda pair: workers_on(pair[0], resources), reverse=True):
        number = min(most, left) if workers_on(node, resources) else 0
        nodes.append((node, number))
        left -= number
    return nodes


def workers_on(node: Mapping[str, float], resources: ResourcesSpec, part: Part | None = None) -> int:
    """Number of workers that fit on a node; of its memory where that is known."""
    needs = [(kind, amount) for kind, amount in asked(resources, part).items() if kind in node or kind != "memory"]
    return min(int(node.get(kind, 0) / amount + 1e-9) for kind, amount in needs)


def trials_on(
    nodes: Sequence[tuple[Mapping[str, float], int]],
    resources: ResourcesSpec,
    *,
    begun: bool = False,
    where: str = "the cluster",
    part: Part | None = None,
) -> int:
    """Number of trials that fit at the same time on nodes, given as (resources, number). Raises UserError where none does.

    For a sweep that has `begun` a trial fits with `min_workers`, since a node may have been lost. `part`: what a worker reserves now, where
    that isn't what the first ones do.
    """
    have = {kind: sum(node.get(kind, 0) * number for node, number in nodes) for kind in ("CPU", "GPU")}
    least = resources.min_workers if begun else resources.workers
    if resources.gpus_per_worker == "auto" and have["GPU"] == 0:
        raise UserError(f"resources.gpus_per_worker: 'auto' given, but {where} has no GPU; 0 would run on the CPU")
    for kind, amount in asked(resources).items():
        if amount * least > have[kind]:
            raise UserError(
                f"resources: a trial asks for {amount * least:g} {kind}s ({least} workers), {where} has {have[kind]:g}; "
                "at most that would be right"
            )
    # A worker must fit on one node: two nodes of 2 CPUs have no room for a worker of 3.
    hold = sum(number * workers_on(node, resources, part) for node, number in nodes)
    if hold < least:
        each = " and ".join(f"{amount:g} {kind}s" for kind, amount in asked(resources).items())
        raise UserError(
            f"resources: a trial asks for {least} workers of {each} each, the nodes of {where} hold {hold} of them; "
            "fewer or smaller workers would be right"
        )
    return max(1, hold // resources.workers)


def asked(resources: ResourcesSpec, part: Part | None = None) -> dict[str, float]:
    """The resources of one worker, or those of its `part`; a driver reserves none."""
    part = part or Part(resources.cpus, resources.gpus)
    asked = {"CPU": part.cpus, "GPU": part.gpus, "memory": part.memory_bytes}
    return {kind: amount for kind, amount in asked.items() if amount > 0}
