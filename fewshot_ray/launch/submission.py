"""Submits sweeps as Ray jobs to a cluster's job server, and follows, lists and stops them.

Uses Ray's job client alone; no training library is needed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fewshot_ray.cluster.ray_private import JOB_LOGGERS, server_version
from fewshot_ray.errors import UserError
from fewshot_ray.launch.cluster_file import read_cluster_file
from fewshot_ray.launch.head import DASHBOARD_PORT, FORWARD, Head

REQUEST = "request.json"
"""File in the package: the command for the cluster, and the laptop's versions."""
METADATA = "fewshot_ray."
CONNECT_SEC = 5.0
STOP_SEC = 120
"""Time for the trials to save after `stop`; then Ray kills the driver, and steps since the last checkpoint are lost."""
RUNNING = ("PENDING", "RUNNING")
CHECK = "check"
"""The command of a job that only checks and runs no sweep."""


@dataclass(frozen=True)
class SweepJob:
    """A Ray job that runs or ran a sweep."""

    id: str
    sweep: str
    """The sweep's URL as the cluster sees it."""
    command: str
    state: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    message: str
    started_sec: float
    ended_sec: float | None
    exit_code: int | None
    nodes: str = ""
    """Limits that the cluster may grow to (`capacity.Growth`), as JSON; "" where they weren't given."""

    @property
    def name(self) -> str:
        """The sweep's name, the last part of its URL."""
        return self.sweep.rstrip("/").rsplit("/", 1)[-1]

    @property
    def ended(self) -> bool:
        """Whether the job is neither pending nor running."""
        return self.state not in RUNNING


class JobServer:
    """The job server of a Ray cluster, at the dashboard's address. Raises UserError where it can't be used."""

    def __init__(self, address: str, remedy: str) -> None:
        """`remedy`: the end of the message where nothing answers, with what the user can do."""
        self.address = address.rstrip("/")
        parts = urlsplit(self.address)
        try:
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or not port or "@" in parts.netloc:
            shown = address.rpartition("@")[2]  # before the @ is a password
            raise UserError(f"--address {shown}: the dashboard's address, http://127.0.0.1:{DASHBOARD_PORT} say, would be right")
        try:
            socket.create_connection((parts.hostname, port), CONNECT_SEC).close()
        except OSError as error:
            raise UserError(f"{self.address}: no dashboard answers ({error.strerror or 'no answer'}); {remedy}") from error
        with self._asking():
            from ray.job_submission import JobSubmissionClient

            from fewshot_ray.cluster.ray_private import maybe_enable_token_auth_if_token_available

            for logger in JOB_LOGGERS:
                logging.getLogger(logger).setLevel(logging.ERROR)
            maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)  # it would override the given address
            if is_loopback(parts.hostname):  # otherwise a proxy would be sent the token
                for name in ("no_proxy", "NO_PROXY"):
                    os.environ[name] = ",".join(filter(None, [os.environ.get(name), parts.hostname]))
            self._client = JobSubmissionClient(self.address)
            theirs = server_version(self._client)
        import ray

        if theirs != ray.__version__:
            raise UserError(
                f"{self.address}: the cluster has Ray {theirs}, this machine {ray.__version__}; the same on both would be right"
            )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turns the errors of Ray's client into a UserError of one line."""
        from aiohttp import ClientError
        from ray.exceptions import AuthenticationError
        from requests import RequestException

        try:
            yield
        except AuthenticationError as error:
            raise UserError(
                f"{self.address}: the cluster refuses this machine's token; ~/.ray/auth_token (or RAY_AUTH_TOKEN) as it was "
                "when the cluster was brought up is right"
            ) from error
        except (RuntimeError, ConnectionError, RequestException, ClientError, ValueError) as error:
            text = " ".join(str(error).split())
            raise UserError(f"{self.address}: the job server says: {text[:300]}") from error

    def submit(self, package: Path, *, sweep: str, command: str, nodes: str = "") -> SweepJob:
        """Submit the job that `package` (a folder with `request.json`) describes."""
        name = re.sub(r"[^A-Za-z0-9_-]", "-", sweep.rstrip("/").rsplit("/", 1)[-1])
        submission_id = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        with self._asking():
            self._client.submit_job(
                entrypoint=f"exec fewshot-ray launched {REQUEST}",
                submission_id=submission_id,
                runtime_env={
                    "working_dir": str(package),
                    "env_vars": {"PYTHONUNBUFFERED": "1", "COLUMNS": "120", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SEC)},
                },
                metadata={f"{METADATA}sweep": sweep, f"{METADATA}command": command, f"{METADATA}nodes": nodes},
            )
        return SweepJob(submission_id, sweep.rstrip("/"), command, "PENDING", "", time.time(), None, None, nodes)

    def job(self, submission_id: str) -> SweepJob:
        """The job's current state."""
        with self._asking():
            return _sweep_job(self._client.get_job_info(submission_id))

    def jobs(self) -> list[SweepJob]:
        """All jobs that fewshot-ray has submitted, newest first."""
        with self._asking():
            found = [_sweep_job(job) for job in self._client.list_jobs()]
        return sorted((job for job in found if job.sweep and job.command != CHECK), key=lambda job: job.started_sec, reverse=True)

    def of_sweep(self, sweep: str) -> list[SweepJob]:
        """The jobs of a sweep, by its name or URL, newest first."""
        return [job for job in self.jobs() if sweep.rstrip("/") in (job.sweep, job.name)]

    def latest(self, sweep: str) -> SweepJob:
        """The running job of a sweep, else its newest. Raises UserError where there is none."""
        found = self.of_sweep(sweep)
        if not found:
            names = list(dict.fromkeys(job.name for job in self.jobs()))
            known = f"{', '.join(names[:5])} {'is' if len(names) == 1 else 'are'} there" if names else "none was launched there"
            raise UserError(
                f"{sweep}: the cluster knows no such sweep ({known}); its name, or the URL that `launch` printed, would be right"
            )
        return next((job for job in found if not job.ended), found[0])

    def output(self, job: SweepJob) -> str:
        """The job's whole output so far."""
        with self._asking():
            return str(self._client.get_job_logs(job.id))

    def follow(self, job: SweepJob) -> Iterator[str]:
        """Stream the job's output from its beginning until it ends."""
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(job.id)

        async def next_piece() -> str | None:
            return await anext(pieces, None)

        try:
            while True:
                task = loop.create_task(next_piece())
                with self._asking():
                    if (piece := loop.run_until_complete(task)) is None:
                        break
                yield piece
        finally:  # Ctrl-C may interrupt the wait for a piece
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    loop.run_until_complete(task)
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def ended(self, job: SweepJob, *, wait_sec: float) -> SweepJob:
        """The job once it has ended, or as it is after `wait_sec`."""
        until_sec = time.monotonic() + wait_sec
        while not (job := self.job(job.id)).ended and time.monotonic() < until_sec:
            time.sleep(0.2)
        return job

    def stop(self, job: SweepJob) -> None:
        """Tell the job to save and end, as SIGTERM does."""
        with self._asking():
            self._client.stop_job(job.id)


@contextmanager
def job_server(cluster: Path | None, address: str | None) -> Iterator[JobServer]:
    """Context with the job server at a dashboard's `address`, or through a tunnel on the head of a cluster file's cluster.

    With a KubeRay manifest both are given: the file has the limits of growth, the address leads to the cluster.
    """
    file = read_cluster_file(cluster) if cluster is not None else None
    if (file is None) == (address is None) and not (file and not file.has_ssh):
        raise UserError("--cluster FILE (as for `ray up`) or --address URL (of a dashboard) would be right, one of them")
    if address is not None:
        remedy = f"{FORWARD} leads there" if file else "the address of a dashboard that this machine reaches would be right"
        yield JobServer(address, remedy)
        return
    assert file is not None
    with Head(file).tunnel(DASHBOARD_PORT) as port:
        yield JobServer(f"http://127.0.0.1:{port}", f"`ray up {cluster}` starts it")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def write_request(package: Path, request: Mapping[str, Any]) -> None:
    """Write the request into a package's folder."""
    (package / REQUEST).write_text(json.dumps(request))


def _sweep_job(job: Any) -> SweepJob:
    metadata = job.metadata or {}
    return SweepJob(
        id=job.submission_id,
        sweep=metadata.get(f"{METADATA}sweep", "").rstrip("/"),
        command=metadata.get(f"{METADATA}command", ""),
        state=str(getattr(job.status, "value", job.status)),
        message=job.message or "",
        started_sec=(job.start_time or 0) / 1000,
        ended_sec=job.end_time / 1000 if job.end_time else None,
        exit_code=job.driver_exit_code,
        nodes=metadata.get(f"{METADATA}nodes", ""),
    )
