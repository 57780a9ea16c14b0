"""What a cluster of the shipped file opens to its network, and what someone without the token gets there."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.roundtrip.conftest import Cluster
from tests.roundtrip.hosts import Host, until

LISTED: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("ports.yaml").read_text())
STRANGER = Path(__file__).with_name("stranger.py")
JOB = """
import ray, time
ray.init()
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
class Sleeper:
    def where(self): return ray.util.get_node_ip_address()
sleepers = [Sleeper.remote() for _ in range(3)]
print("on", *ray.get([sleeper.where.remote() for sleeper in sleepers]), flush=True)
time.sleep(3600)
"""
PUBLIC = {
    "rpc": {"grpc.health.v1.Health/Check", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"},
    "agent": {"GET /api/healthz", "GET /api/local_raylet_healthz"},
    "dashboard": {"GET /", "GET /favicon.ico", "GET /api/authentication_mode", "GET /api/gcs_healthz"},
}
"""What Ray answers anybody: that it is alive, which services it has, and the page that asks for the token."""

pytestmark = pytest.mark.roundtrip


@dataclass(frozen=True)
class Port:
    """An open port."""

    number: int
    process: str
    listed: dict[str, Any] | None
    """Its line in ports.yaml."""


@pytest.fixture(scope="module")
def busy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with an actor on every node."""
    head = cluster.head
    head.path("/tmp/job.py").write_text(JOB)
    submit = ("bash", "-ic", "ray job {} --address=http://127.0.0.1:8265 {}")
    head.run(*submit[:2], submit[2].format("submit", "--no-wait --submission-id=sleepers -- python /tmp/job.py"))
    until("actors are on all nodes", lambda: "\non " in head.run(*submit[:2], submit[2].format("logs", "sleepers")))
    yield cluster
    head.run(*submit[:2], submit[2].format("stop", "sleepers"))


@pytest.fixture(scope="module")
def opened(busy: Cluster) -> dict[str, list[Port]]:
    """Host -> the ports that the storage host reaches there."""
    return {name: scanned(busy, busy.hosts[name]) for name in ("head", "worker1")}


def scanned(cluster: Cluster, host: Host) -> list[Port]:
    """All that answer of 65535, with the process that listens."""
    listens = {}
    for line in host.run("ss", "-Hltnp").splitlines():
        where, process = line.split()[3], re.search(r"pid=(\d+)", line)
        if process and not where.startswith(("127.", "[::ffff:127.", "[::1]")):
            listens[int(where.rsplit(":", 1)[1])] = host.run("ps", "-ww", "-o", "args=", "-p", process[1]).strip()
    found = []
    for number in ask(cluster.hosts["storage"], {"scan": host.address}):
        process = listens.get(number, "")
        lines = [line for line in LISTED if fits(line, "head" if host.name == "head" else "worker", number, process)]
        found.append(Port(number, process, lines[0] if lines else None))
        print(f"{host.name:8}{number:6}  {lines[0].get('role', '') if lines else 'NOT LISTED':28}{process[:90]}")
    return found


def fits(line: dict[str, Any], node: str, number: int, process: str) -> bool:
    """Whether a line of ports.yaml is about this port."""
    first, _, last = str(line["port"]).partition("-")
    return node in line["nodes"] and line["process"] in process and int(first) <= number <= int(last or first)


def ask(host: Host, order: dict[str, Any]) -> Any:
    """What stranger.py, on a host, is told."""
    return json.loads(host.run("python", STRANGER, json.dumps(order), timeout_sec=180).splitlines()[-1])


def test_no_other_port_is_open(opened: dict[str, list[Port]]) -> None:
    """Oracle: ports.yaml, which names every open port, and no port that isn't open."""
    for name, ports in opened.items():
        assert [port for port in ports if port.listed is None] == []
        node = "head" if name == "head" else "worker"
        unseen = [line for line in LISTED if node in line["nodes"] and line not in [port.listed for port in ports]]
        assert unseen == [], f"listed for a {node} and not open"


def test_rays_ports_refuse_whoever_has_no_token(busy: Cluster, opened: dict[str, list[Port]]) -> None:
    """Oracle: the status codes of HTTP and gRPC, over every method of every service and every route that Ray describes."""
    for name, ports in opened.items():
        mine = {port.number: port.listed for port in ports if port.listed and port.listed["asks_for"] == "token"}
        rpc = [number for number, line in mine.items() if line["speaks"] == "rpc"]
        http = {
            str(number): "agent" if "DashboardAgent" in line["process"] else RUNTIME_ENV
            for number, line in mine.items()
            if number not in rpc
        }
        for token in ("", "0" * 64):
            told = ask(busy.hosts["storage"], {"address": busy.hosts[name].address, "token": token, "rpc": rpc, "http": http})
            for port, answers in told["rpc"].items():
                assert answers is not None, f"{name}:{port} speaks no gRPC"
                assert set(answers.pop("OK", [])) <= PUBLIC["rpc"], f"{name}:{port}"
                assert set(answers) == {"UNAUTHENTICATED"}, f"{name}:{port}"
            for port, answers in told["http"].items():
                assert set(answers.pop("200", [])) <= PUBLIC["agent"], f"{name}:{port}"
                assert set(answers) == {"403" if token else "401"}, f"{name}:{port}"


RUNTIME_ENV = [["POST", f"/{order}"] for order in ("get_or_create_runtime_env", "delete_runtime_env_if_possible", "get_runtime_envs_info")]


def test_the_dashboard_refuses_whoever_has_no_token(busy: Cluster) -> None:
    """Oracle: HTTP's status codes. The stranger is on the head itself, as through a tunnel; the page that asks for the token is public."""
    for token in ("", "0" * 64):
        answers = ask(busy.head, {"address": "127.0.0.1", "token": token, "http": {"8265": "dashboard"}})["http"]["8265"]
        assert set(answers.pop("200")) == PUBLIC["dashboard"]
        assert set(answers) == {"403" if token else "401"}
        assert {"POST /api/jobs/", "PUT /api/packages/{protocol}/{package_name}"} <= {route for told in answers.values() for route in told}


def test_the_token_opens_them(busy: Cluster) -> None:
    """The refusals above are for want of it: the same questions are answered to whoever has it."""
    token = busy.laptop.path("/root/.ray/auth_token").read_text().strip()
    method = ["ray.rpc.NodeInfoGcsService", "GetAllNodeInfo"]
    order = {"address": busy.head.address, "token": token, "methods": [method], "rpc": [6379]}
    assert ask(busy.hosts["storage"], order)["rpc"] == {"6379": {"OK": ["/".join(method)]}}
    jobs = ["GET", "/api/jobs/"]
    order = {"address": "127.0.0.1", "token": token, "http": {"8265": [jobs]}}
    assert ask(busy.head, order)["http"] == {"8265": {"200": [" ".join(jobs)]}}


def test_what_asks_for_nothing_only_tells(busy: Cluster, opened: dict[str, list[Port]]) -> None:
    """Oracle: whatever is asked of it, the answer is a page of metrics."""
    asked = [["GET", "/"], ["GET", "/metrics"], ["GET", "/api/jobs/"], ["GET", "/../etc/passwd"], ["POST", "/"], ["PUT", "/metrics"]]
    for name, ports in opened.items():
        http = {str(port.number): asked for port in ports if port.listed and port.listed["asks_for"] == "nothing"}
        told = ask(busy.hosts["storage"], {"address": busy.hosts[name].address, "http": http})["http"]
        assert all(set(answers) <= {"metrics", "405", "404"} for answers in told.values()), told


def test_rays_own_clients_are_refused(busy: Cluster) -> None:
    """Oracle: Ray's client for state says why; those for drivers give up. Nobody joins."""
    stranger, address = busy.hosts["storage"], busy.head.address
    expected = {
        f"import ray.util.state as state; state.list_nodes(address='{address}:6379')": "AuthenticationError",
        f"import ray; ray.init(address='{address}:6379')": "Failed to connect",
        f"import ray; ray.init(address='ray://{address}:10001')": "ConnectionError",
        f"import os; os.execlp('ray', 'ray', 'start', '--address={address}:6379')": "AuthenticationError",
    }
    trying = [stranger.start("python", "-c", code, output=subprocess.PIPE) for code in expected]
    for process, (code, reason) in zip(trying, expected.items(), strict=True):
        said, _ = process.communicate(timeout=120)
        assert process.returncode != 0, code
        assert reason in said, code
    assert not stranger.processes("raylet")


def test_ssh_asks_for_the_key(busy: Cluster) -> None:
    """Oracle: SSH's own list of what it would take."""
    options = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no")
    for name in ("head", "worker1"):
        said = busy.hosts["storage"].run("ssh", *options, busy.hosts[name].address, "true", code=255)
        assert "Permission denied (publickey)" in said
