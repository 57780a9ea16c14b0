"""Trials of two workers each on the cluster's hosts: where they are placed, and that their gradients find each other."""

from __future__ import annotations

import pytest

from tests.roundtrip.conftest import CLUSTER, Cluster
from tests.roundtrip.hosts import until
from tests.roundtrip.machines import NODES

SWEEP = """
name: {name}
source: {{model: "embedded://digits-ddpm"}}
target: {{images: "embedded://digits/shots", holdout: "embedded://digits/validation"}}
method: {{finetune: {{}}}}
train: {{steps: 1000000, batch_size: 4, lr: 1.0e-4}}
evaluate: {{every: 20, samples: 0, metrics: [holdout_loss], loss_draws: 20}}
search: {{trials: 1}}
resources: {{workers: 2, min_workers: 2, cpus_per_worker: {cpus}}}
storage: s3://bucket/sweeps
"""
WORKER = "ray::RayTrainWorker"

pytestmark = pytest.mark.roundtrip


def workers(cluster: Cluster) -> list[int]:
    """How many of Ray Train's workers each node has, the fewest first."""
    return sorted(len(cluster.hosts[name].processes(WORKER)) for name in NODES)


def evaluations(cluster: Cluster, name: str) -> int:
    """Of a sweep, by what it has printed."""
    return cluster.laptop.run("fewshot-ray", "logs", name, "--cluster", CLUSTER).count(" step ")


def test_workers_share_a_host_where_they_fit(cluster: Cluster) -> None:
    """Oracle: the hosts' own lists of processes. Each has one CPU: two halves fit on one, two whole ones take two hosts.

    A host's name leads to itself, as on Debian: gradients that travelled over it would arrive nowhere, and no step would be evaluated.
    """
    laptop, there = cluster.laptop, ("--cluster", CLUSTER)
    for name, cpus, placed in (("together", 0.5, [0, 0, 2]), ("apart", 1, [0, 1, 1])):
        laptop.path(laptop.folder / f"{name}.yaml").write_text(SWEEP.format(name=name, cpus=cpus))
        laptop.run("fewshot-ray", "launch", f"{name}.yaml", "--detach", *there)
        until(f"the workers of {name!r} are there", lambda: sum(workers(cluster)) == 2, 120)
        assert workers(cluster) == placed
        if name == "apart":
            until("it is evaluated", lambda: evaluations(cluster, "apart") >= 1, 120, 1)
            assert workers(cluster) == placed
        assert "stopped" in laptop.run("fewshot-ray", "stop", name, *there)
        until("no worker is left", lambda: workers(cluster) == [0, 0, 0])
