"""What fits on a cluster's nodes at most, and what they cost, without the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.cli.cluster_check import cluster_lines, prices_of
from fewshot_ray.cluster.placement import nodes_of, trials_on
from fewshot_ray.errors import UserError
from fewshot_ray.launch.capacity import hourly, most_nodes, nodes_for, workers_at_once
from fewshot_ray.launch.cluster_file import ClusterFile, NodeType
from fewshot_ray.spec.sections import FileSpec, ResourcesSpec

SPOT = NodeType("spot", {"CPU": 8, "GPU": 1}, 0, 3, "g5.2xlarge", True, False)
BIG = NodeType("big", {"CPU": 48, "GPU": 4}, 0, 2, "g5.12xlarge", False, False)
HEAD = NodeType("head", {"CPU": 0}, 0, 0, "m6i.xlarge", False, True)
CPUS = NodeType("cpus", {"CPU": 16}, 0, 4, None, False, False)
UNKNOWN = NodeType("odd", {}, 0, 3, "x9.large", False, False)


def cluster(*types: NodeType, most: int = 4) -> ClusterFile:
    return ClusterFile(Path("c.yaml"), {}, "c", "aws", types, most)


def asks(workers: int = 1, gpus: float = 1, cpus: float = 1) -> ResourcesSpec:
    return ResourcesSpec(workers=workers, gpus_per_worker=gpus, cpus_per_worker=cpus)


@pytest.mark.parametrize(
    ("types", "most", "resources", "hold"),
    [
        ((HEAD, SPOT), 4, asks(), 3),  # the type's own bound
        ((HEAD, SPOT), 2, asks(), 2),  # the cluster's
        ((HEAD, SPOT, BIG), 4, asks(), 10),  # 2 big of 4, 2 spot of 1
        ((HEAD, SPOT, BIG), 3, asks(gpus=2), 4),  # 2 big of 2, none on spot
        ((HEAD, SPOT), 4, asks(gpus=0.5, cpus=3), 6),  # 2 by both
        ((HEAD, SPOT), 4, asks(gpus=0.25, cpus=4), 6),  # CPUs bound
        ((NodeType("head", {"CPU": 4}, 0, 0, None, False, True), SPOT), 1, asks(gpus=0, cpus=2), 6),  # 2 on the head, 4 on spot
        ((NodeType("head", {"CPU": 4}, 0, 2, None, False, True),), 1, asks(gpus=0, cpus=4), 2),  # the head and one more of its type
        ((HEAD, SPOT, CPUS), 4, asks(gpus=0, cpus=9), 4),  # on machines without a GPU alone, and they come first
        ((HEAD, SPOT), 4, asks(gpus=0.1, cpus=0.1), 30),  # 10 x 0.1 is 1 to a node
    ],
)
def test_workers_at_once(types: tuple[NodeType, ...], most: int, resources: ResourcesSpec, hold: int) -> None:
    """Oracle: counted by hand; and a cluster that grows to `most_nodes` is told the same by `run`."""
    file = cluster(*types, most=most)
    assert workers_at_once(file, resources) == hold
    assert sum(used.nodes * used.workers_each for used in nodes_for(file, resources, hold)) == hold
    growth = json.loads(json.dumps(most_nodes(file)))  # as it is sent
    assert trials_on(nodes_of(growth, resources), resources) == hold


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (asks(gpus=2), r"gpus_per_worker: a worker asks for 2 GPUs, no node of c\.yaml has more than 1 \(spot\); at most 1"),
        (asks(cpus=9), r"cpus_per_worker: a worker asks for 9 CPUs, .* more than 8 \(spot\); at most 8"),
        (asks(workers=4), r"workers: a trial asks for 4 workers .* holds 3 at most \(max_workers 4: 3 spot\); at most 3"),
    ],
)
def test_what_can_never_run_is_refused(resources: ResourcesSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        workers_at_once(cluster(HEAD, SPOT), resources)


def test_no_one_type_has_both() -> None:
    """CPUs enough on one type and GPUs on another are no worker."""
    cpus = NodeType("cpus", {"CPU": 32}, 0, 2, None, False, False)
    with pytest.raises(UserError, match=r"holds 0 at most .* one node type with enough of each"):
        workers_at_once(cluster(HEAD, SPOT, cpus), asks(cpus=16))


def test_what_is_not_known_is_not_refused() -> None:
    file = cluster(HEAD, UNKNOWN)
    assert workers_at_once(file, asks(gpus=64)) is None
    assert most_nodes(file) is None


def test_price_of_an_hour() -> None:
    """Oracle: the given prices added by hand; a type without one is named, whatever machine it is of: prices change."""
    file = cluster(HEAD, SPOT)
    assert hourly(file, nodes_for(file, asks(), 2), {}).unknown == ("head", "spot")
    assert hourly(file, nodes_for(file, asks(), 2), {"head": 0.25}).unknown == ("spot",)
    assert hourly(file, nodes_for(file, asks(), 2), {"spot": 0.5, "head": 0.25}) == (1.25, ())
    always = cluster(HEAD, NodeType("gpu", {"CPU": 8, "GPU": 1}, 2, 4, "g5.2xlarge", False, False))
    assert hourly(always, nodes_for(always, asks(), 1), {"head": 0, "gpu": 1}).usd == 2  # the second is there anyway


@pytest.mark.parametrize("option", ["spot", "spot=", "spot=-1", "spot=nan", "spto=1", "=1"])
def test_prices_that_are_none(option: str) -> None:
    assert prices_of(cluster(HEAD, SPOT), ["spot=0.5", "head=1e-1"]) == {"spot": 0.5, "head": 0.1}
    with pytest.raises(UserError, match=r"--price .*TYPE=USD would be right, an hour's price of one of head, spot"):
        prices_of(cluster(HEAD, SPOT), [option])


def run_file(**resources: Any) -> FileSpec:
    tree = {"name": "n", "source": {"model": "m"}, "target": {"images": "i", "holdout": 1}, "method": {"finetune": {}}}
    return FileSpec.model_validate({**tree, "search": {"trials": 8}, "resources": resources})


def test_lines_add_up() -> None:
    """Oracle: 12 hours of one worker on 3 at a time are 4 hours, at 0.1 + 3 x 1 USD 12.40 USD."""
    lines = dict(
        cluster_lines(run_file(gpus_per_worker=1), cluster(HEAD, SPOT), {"head": 0.1, "spot": 1.0}, work_sec=12 * 3600, step="this CPU")
    )
    assert lines["at once"] == "3 trials of 1 worker of 1 CPU and 1 GPU; the cluster holds 3 such workers at most"
    assert "about 4.0 h with 3 trials at a time, were its workers as fast as this CPU" in lines["time"]
    assert "12.40 USD" in lines["cost"]
    assert "the head and 3 spot at 3.10 USD an hour" in lines["cost"]
    assert "warning" not in lines
    idle = dict(cluster_lines(run_file(), cluster(HEAD, SPOT), {}, work_sec=60, step="this CPU"))
    assert "GPUs would be paid for and idle" in idle["warning"]
    assert idle["cost"].startswith("`--price head=USD --price spot=USD`, what a node of each type costs an hour, tells it")


def test_lines_of_a_cluster_whose_nodes_are_not_known() -> None:
    lines = dict(cluster_lines(run_file(gpus_per_worker=1), cluster(HEAD, UNKNOWN), {}, work_sec=7200, step="this CPU"))
    assert "shows when it is up" in lines["at once"]
    assert "2.0 h with 1 trial at a time" in lines["time"]
    assert "cost" not in lines
