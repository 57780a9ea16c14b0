"""Data-parallel scaling on paper: what a step's collectives cost on a cluster, and how many GPUs are worth having.

Nothing here is measured. The loop reduces after the backward pass, so nothing overlaps: a step is its computation, then its collectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

WORTHWHILE = 0.8
"""Efficiency below which more GPUs aren't counted as scaling."""
MOST_GPUS = 2**16
"""The search for the break ends here."""


@dataclass(frozen=True)
class Cluster:
    """Assumed, not measured. Rates are of one direction and sustained."""

    gpus_per_node: int = 8
    node_bytes_per_sec: float = 300e9
    """Of a GPU to the others of its node: NVLink of an A100's class. Without NVLink (PCIe) about 12e9."""
    network_bytes_per_sec: float = 12.5e9
    """Of a node, shared by its GPUs: 100 Gbit/s."""
    node_latency_sec: float = 5e-6
    """Of one hop within a node."""
    network_latency_sec: float = 20e-6
    """Of one hop between nodes."""

    def shape(self, gpus: int) -> tuple[int, int]:
        """GPUs of a node, and nodes. Raises ValueError where the last node would be part empty."""
        used = min(gpus, self.gpus_per_node)
        if gpus < 1 or gpus % used:
            raise ValueError(f"gpus={gpus}: whole nodes of {self.gpus_per_node}, or 1 to {self.gpus_per_node}, are right")
        return used, gpus // used


@dataclass(frozen=True)
class Gather:
    """Rows that every worker gets from all, `count` times a step on average."""

    row_bytes: float
    most_rows: int | None
    """Over all workers, whatever the batch; None: a row an image."""
    count: float = 1.0


@dataclass(frozen=True)
class Work:
    """A step, on average over the run."""

    image_sec: float
    """Computation for an image, forward and backward."""
    sums: tuple[tuple[float, float], ...] = ()
    """Bytes of an all-reduce, and how often a step has it."""
    gathers: tuple[Gather, ...] = ()


def sum_sec(bytes_: float, gpus: int, cluster: Cluster) -> float:
    """A hierarchical ring all-reduce: scatter-reduce in the nodes, all-reduce between them, gather in the nodes.

    A ring of n takes `2 (n - 1) / n` times the bytes over the bandwidth and `2 (n - 1)` hops.
    """
    used, nodes = cluster.shape(gpus)
    inside = 2 * (used - 1) / used * bytes_ / cluster.node_bytes_per_sec + 2 * (used - 1) * cluster.node_latency_sec
    between = 2 * (nodes - 1) / nodes * bytes_ / cluster.network_bytes_per_sec + 2 * (nodes - 1) * cluster.network_latency_sec
    return inside + between


def gather_sec(own_bytes: float, gpus: int, cluster: Cluster) -> float:
    """A ring all-gather of `own_bytes` a GPU: between the nodes each receives the others' once, then its GPUs share all of it."""
    used, nodes = cluster.shape(gpus)
    inside = (used - 1) * nodes * own_bytes / cluster.node_bytes_per_sec + (used - 1) * cluster.node_latency_sec
    between = (nodes - 1) * used * own_bytes / cluster.network_bytes_per_sec + (nodes - 1) * cluster.network_latency_sec
    return inside + between


def communication_sec(work: Work, images: int, gpus: int, cluster: Cluster) -> float:
    """All collectives of a step with `images` a GPU."""
    total = sum(count * sum_sec(bytes_, gpus, cluster) for bytes_, count in work.sums)
    for gather in work.gathers:
        rows = images if gather.most_rows is None else math.ceil(gather.most_rows / gpus)
        total += gather.count * gather_sec(rows * gather.row_bytes, gpus, cluster)
    return total


def weak_efficiency(work: Work, images: int, gpus: int, cluster: Cluster) -> float:
    """`t(1) / t(n)` with `images` on every GPU, so that the global batch grows with them."""
    computed = images * work.image_sec
    return computed / (computed + communication_sec(work, images, gpus, cluster))


def fixed_batch_efficiency(work: Work, batch: int, gpus: int, cluster: Cluster) -> float:
    """`t(1) / (n t(n))` with the global batch as it is; a step lasts as long as the GPU with the most images. 0 past an image each."""
    if gpus > batch:
        return 0.0
    images = math.ceil(batch / gpus)
    return batch * work.image_sec / (gpus * (images * work.image_sec + communication_sec(work, images, gpus, cluster)))


def breaks(efficiency: Callable[[int], float], most: int = MOST_GPUS) -> int:
    """The largest power of two, at most `most`, up to which efficiency stays worthwhile; 1 where 2 GPUs aren't."""
    gpus = 1
    while 2 * gpus <= most and efficiency(2 * gpus) >= WORTHWHILE:
        gpus *= 2
    return gpus
