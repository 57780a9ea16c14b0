"""A sweep as a Ray job: launched, followed, stopped and resumed from a terminal that only reaches a dashboard."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewshot_ray.data.places import pictures
from fewshot_ray.launch.submission import JobServer
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import to_yaml
from fewshot_ray.storage import Folder
from tests.cluster.conftest import sweep_file

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from fewshot_ray.cli import main; main()"]


def free_ports(number: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


MANIFEST = """
apiVersion: ray.io/v1
kind: RayCluster
metadata: {name: c}
spec:
  headGroupSpec: {template: {spec: {containers: [{name: head, resources: {limits: {cpu: "2"}}}]}}}
  workerGroupSpecs: []
"""


@pytest.fixture(scope="module")
def laptop(short_folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a terminal, beside a head with a token; RAY_DASHBOARD is its dashboard's address."""
    home = short_folder / "home"
    (home / ".ray").mkdir(parents=True)
    token = home / ".ray" / "auth_token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
    kept |= {
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    port, dashboard, client, agent, metrics, runtime = free_ports(6)
    ports = {"port": port, "dashboard-port": dashboard, "ray-client-server-port": client, "dashboard-agent-listen-port": agent}
    ports |= {"metrics-export-port": metrics, "runtime-env-agent-port": runtime}
    options = [f"--{name}={number}" for name, number in ports.items()]
    head = subprocess.Popen(
        ["ray", "start", "--head", "--block", "--num-cpus=2", "--dashboard-host=127.0.0.1", f"--temp-dir={short_folder}/head", *options],
        env={**kept, "RAY_AUTH_MODE": "token"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    environment = {**kept, "RAY_DASHBOARD": f"http://127.0.0.1:{dashboard}"}
    try:
        given_up_sec = time.monotonic() + 60
        while call(environment, "status").returncode != 0:
            assert head.poll() is None
            assert time.monotonic() < given_up_sec
            time.sleep(0.5)
        yield environment
    finally:
        head.terminate()  # `--block` ends what it started
        head.wait(60)


def call(
    environment: dict[str, str], *arguments: str, timeout_sec: float = 120, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    where = ["--address", environment["RAY_DASHBOARD"]]
    command = [*COMMAND, *arguments, *where]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout_sec, check=False, cwd=cwd)


def test_stopped_and_resumed(laptop: dict[str, str], tmp_path: Path) -> None:
    """Oracle: images from the terminal's disk; one sweep at a time; stopped trials are saved and go on from there; the exit codes."""
    images = tmp_path / "ten"
    images.mkdir()
    for picture in pictures("embedded://digits/shots"):
        (images / picture.name).write_bytes(picture.content)
    spec = sweep_file(
        "far", tmp_path / "store", train={"steps": 1_000_000}, evaluate={"every": 500}, search={"trials": 1, "scheduler": None}
    )
    spec.tree["target"]["images"] = str(images)
    file = tmp_path / "far.yaml"
    file.write_text(to_yaml(spec.tree))
    manifest = tmp_path / "kuberay.yaml"
    manifest.write_text(MANIFEST)
    launched = call(laptop, "launch", str(file), "--detach", "--cluster", str(manifest))
    assert launched.returncode == 0, launched.stderr
    assert "fewshot-ray logs -f far" in launched.stderr
    again = call(laptop, "launch", str(file))
    assert (again.returncode, again.stdout) == (2, "")
    assert re.match(
        r"error: far runs there already; `fewshot-ray logs -f far --address \S+` follows it, `stop far --address \S+` ends it\n",
        again.stderr.splitlines()[-1] + "\n",
    )
    sweep = tmp_path / "store" / "far"
    rows = sweep / "trials" / "t0000" / "metrics.jsonl"
    given_up_sec = time.monotonic() + 90
    while not rows.exists():
        assert time.monotonic() < given_up_sec, call(laptop, "logs", "far").stdout
        time.sleep(0.1)
    assert re.search(r"^far +running +run ", call(laptop, "status").stdout, re.MULTILINE)
    stopped = call(laptop, "stop", "far")
    assert stopped.returncode == 0, stopped.stderr
    assert f"go on with: fewshot-ray resume {sweep} --address" in stopped.stdout
    assert [record.state for record in SweepFolder(Folder(sweep)).trials()] == ["RUNNING"]
    steps = [int(path.name.removeprefix("step_")) for path in (sweep / "trials" / "t0000" / "checkpoints").glob("step_*")]
    evaluated = 500 * len(rows.read_text().splitlines())
    assert max(steps) > evaluated  # what it was told to save
    said = call(laptop, "logs", "far").stdout
    assert "SIGTERM: the trials save where they are" in said
    assert "Traceback" not in said
    command = [*COMMAND, "resume", "far", "--address", laptop["RAY_DASHBOARD"]]
    with subprocess.Popen(command, env=laptop, stdout=subprocess.PIPE, text=True) as resumed:
        assert resumed.stdout is not None
        assert any(f"t0000 started: plain fine-tuning, from step {evaluated}" in line for line in resumed.stdout)
        resumed.terminate()  # the sweep goes on
    assert re.search(r"^far +(running|pending) +resume ", call(laptop, "status").stdout, re.MULTILINE)
    assert call(laptop, "stop", "far").returncode == 0
    assert "stopped" in call(laptop, "status", "far").stdout


def test_what_ends_a_job_ends_the_command(laptop: dict[str, str], tmp_path: Path) -> None:
    """Oracle: what is wrong shows on the head only; its line and exit code come home."""
    spec = sweep_file("wrong", tmp_path / "store")
    spec.tree["target"]["test"] = "/on/no/machine"  # a terminal can't know that it isn't the cluster's
    file = tmp_path / "wrong.yaml"
    file.write_text(to_yaml(spec.tree))
    ended = call(laptop, "launch", str(file))
    assert ended.returncode == 2
    last = ended.stdout.splitlines()[-1]
    assert re.match(rf"error: {file}, line \d+: target\.test: /on/no/machine: there is no such file or folder; ", last)


def test_another_version_on_the_laptop(laptop: dict[str, str], tmp_path: Path) -> None:
    """Oracle: one line of the head's that says what differs and the remedy, with its exit code; no sweep is begun."""
    shutil.copytree(ROOT / "fewshot_ray", tmp_path / "fewshot_ray", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "fewshot_ray/search/jobs.py").open("a") as module:
        module.write("# changed since\n")
    file = tmp_path / "other.yaml"
    file.write_text(to_yaml(sweep_file("other", tmp_path / "store").tree))
    refused = call(laptop, "launch", str(file), cwd=tmp_path)  # where Python looks first
    assert refused.returncode == 2
    said = refused.stdout.splitlines()[-1]
    assert said.startswith("error: versions differ (fewshot-ray's search/jobs.py); ")
    assert "`ray up` again installs the laptop's there" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"HOME": "/nonexistent"}, "refuses this machine's token; ~/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses this machine's token; ~/.ray/auth_token"),
        ({"RAY_DASHBOARD": "http://127.0.0.1:1"}, "no dashboard answers (Connection refused)"),
        ({"RAY_DASHBOARD": "127.0.0.1:8265"}, "the dashboard's address, http://127.0.0.1:8265 say, would be right"),
        ({"RAY_DASHBOARD": "http://127.0.0.1:port"}, "the dashboard's address, http://127.0.0.1:8265 say, would be right"),
    ],
)
def test_no_way_in(setting: dict[str, str], message: str, laptop: dict[str, str]) -> None:
    """Oracle: one line, exit code 2, within ten seconds; the limit is for a busy machine."""
    began = time.monotonic()
    refused = call({**laptop, **setting}, "status", timeout_sec=30)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert time.monotonic() - began < 20


def job(name: str, state: str, command: str, started: int) -> SimpleNamespace:
    """As Ray's client gives it."""
    metadata = {"fewshot_ray.sweep": f"s3://bucket/sweeps/{name}", "fewshot_ray.command": command, "fewshot_ray.nodes": f"{started}"}
    return SimpleNamespace(
        submission_id=f"{name}-{started}",
        metadata=metadata,
        status=state,
        message=None,
        start_time=started * 1000,
        end_time=None,
        driver_exit_code=None,
    )


def test_the_job_that_runs_is_meant() -> None:
    """Oracle: written out by hand: a check is no sweep's job, and one that runs goes before a newer one that has ended."""
    server = JobServer.__new__(JobServer)
    of_others = SimpleNamespace(
        submission_id=None, metadata=None, status="RUNNING", message="", start_time=9, end_time=None, driver_exit_code=None
    )
    listed = [job("a", "RUNNING", "run", 1), job("a", "FAILED", "run", 2), job("a", "SUCCEEDED", "check", 3), job("b", "FAILED", "run", 4)]
    server._client = SimpleNamespace(list_jobs=lambda: [of_others, *listed])
    assert [found.id for found in server.jobs()] == ["b-4", "a-2", "a-1"]
    assert server.latest("a").id == server.latest("s3://bucket/sweeps/a/").id == "a-1"
    assert (server.latest("b").id, server.latest("b").nodes) == ("b-4", "4")
