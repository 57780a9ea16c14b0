"""The hosts, and the shipped on-premise cluster on them."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.roundtrip.hosts import HOME, REPOSITORY, Host, missing, until
from tests.roundtrip.machines import NODES, cluster_file, machines

CLUSTER = "cluster/onprem.yaml"


@dataclass
class Cluster:
    """It, and what was measured on it."""

    hosts: Mapping[str, Host]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def laptop(self) -> Host:
        """Where the commands are typed."""
        return self.hosts["laptop"]

    @property
    def head(self) -> Host:
        """The node that takes jobs."""
        return self.hosts["head"]


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Brought up by `ray up`, as docs/clusters.md has it; all nodes are there."""
    if reason := missing():
        pytest.skip(f"the cluster can't be tried here: {reason}")
    with machines() as found:
        running, begun = Cluster(found), time.monotonic()
        laptop = running.laptop
        laptop.environment["RAY_USAGE_STATS_ENABLED"] = "0"
        laptop.folder = checkout(laptop)
        laptop.environment["PYTHONPATH"] = str(laptop.folder)
        laptop.path(laptop.folder / CLUSTER).write_text(cluster_file(found))
        laptop.run("ray", "get-auth-token", "--generate")
        laptop.run("ray", "up", "--yes", CLUSTER, timeout_sec=180)
        running.seconds["ray up"] = time.monotonic() - begun
        running.seconds["all nodes there"] = until("all nodes are there", lambda: nodes(running) == len(NODES), 120)
        yield running


def checkout(laptop: Host) -> Path:
    """The repository's folder on the laptop, with what `ray up` sends from it."""
    folder = HOME / "repository"
    laptop.path(folder / "cluster").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "fewshot_ray", laptop.path(folder / "fewshot_ray"), ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(REPOSITORY / name, laptop.path(folder / name))
    return folder


def nodes(cluster: Cluster) -> int:
    """How many the cluster says it has."""
    said = cluster.laptop.run("ray", "exec", CLUSTER, "ray list nodes --filter state=ALIVE", code=None)
    total = re.search(r"^Total: (\d+)", said, re.MULTILINE)
    return int(total[1]) if total else 0
