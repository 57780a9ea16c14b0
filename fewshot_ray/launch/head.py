"""Reaches a cluster's head from a laptop by SSH, with the user and key of `ray up`."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fewshot_ray.errors import UserError
from fewshot_ray.launch.cluster_file import ClusterFile, check_ssh_key

Answer = TypeVar("Answer")

ANSWER_SEC = 9.0
"""Time for a provider or a host to answer; after it they count as unreachable."""
DASHBOARD_PORT = 8265
FORWARD = f"`kubectl port-forward POD {DASHBOARD_PORT}` to the head's pod"
TUNNEL = "fewshot-ray: the tunnel is there"
PACKAGES = {"ssh": "openssh-client", "rsync": "rsync"}
"""Debian's and Ubuntu's packages of the programs that are used here."""


class Head:
    """Runs commands, copies files and forwards ports on the head node. Every failure is a UserError of one line."""

    def __init__(self, cluster: ClusterFile) -> None:
        if not cluster.has_ssh:
            raise UserError(
                f"{cluster.path}: a cluster on Kubernetes has no SSH; launch, resume, status, logs and stop reach it with --address "
                f"http://127.0.0.1:{DASHBOARD_PORT} ({FORWARD}), export, leaderboard and board take the sweep's URL"
            )
        check_ssh_key(cluster)
        self.cluster = cluster
        self.auth: dict[str, Any] = cluster.tree.get("auth") or {}

    @cached_property
    def address(self) -> str:
        """The head's address, asked of the provider. Raises UserError."""
        from ray.autoscaler.sdk import get_head_node_ip

        hint = f"`ray up {self.cluster.path}` starts it"
        try:
            return _within(ANSWER_SEC, lambda: str(get_head_node_ip(str(self.cluster.path))))
        except TimeoutError:
            raise UserError(f"{self.cluster.path}: {self.cluster.provider} doesn't answer; is this machine online?") from None
        except ImportError as error:
            needs = error.name or ("boto3" if self.cluster.provider == "aws" else "a package")
            raise UserError(
                f"{self.cluster.path}: provider {self.cluster.provider} needs {needs} on this machine; "
                "pip install 'fewshot-ray[aws]' would be right for AWS, what `ray up` asks for elsewhere"
            ) from error
        except RuntimeError as error:  # what Ray raises where there is no head
            raise UserError(f"{self.cluster.path}: cluster {self.cluster.name} has no head that runs; {hint}") from error
        except Exception as error:  # providers' clients have no common error class (no credentials, unknown region)
            text = " ".join(str(error).split())
            raise UserError(f"{self.cluster.path}: {self.cluster.provider} doesn't say where the head is ({text[:200]})") from error

    def ssh(self, *options: str) -> list[str]:
        """The ssh command up to the host; a shell command may follow. Raises UserError where ssh isn't installed."""
        _check_program("ssh", "the cluster's head is reached with it")
        return ["ssh", *self._options, *options, f"{self.auth['ssh_user']}@{self.address}"]

    @property
    def _options(self) -> list[str]:
        known = Path("~/.ssh").expanduser() / f"known_hosts.{self.cluster.name}"
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "8",
            "ServerAliveInterval": "15",
            "ServerAliveCountMax": "4",
            # A new cluster's key is accepted, and must be the same from then on.
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": str(known),
            "LogLevel": "ERROR",
        }
        if proxy := self.auth.get("ssh_proxy_command"):
            options["ProxyCommand"] = str(proxy)
        arguments = [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]
        if key := self.auth.get("ssh_private_key"):
            arguments += ["-i", os.path.expanduser(str(key)), "-o", "IdentitiesOnly=yes"]
        return arguments

    def run(self, *command: str, terminal: bool = False, capture: bool = False) -> subprocess.CompletedProcess[str]:
        """Run a command in a login shell on the head, as `ray exec` does; with `capture` its output is returned, else printed.

        The remote process ends with this one: with `terminal` because the terminal closes, else because its standard input, never written
        to, does.
        """
        # Standard input is duplicated to 3, since a shell's background processes get an empty one.
        watched = f"exec 3<&0; {shlex.join(command)} </dev/null 3<&- & child=$!; {{ cat <&3; kill $child; }} >/dev/null 2>&1 & wait $child"
        line = _in_login_shell(f"exec {shlex.join(command)}" if terminal else watched)
        theirs, ours = os.pipe()
        try:
            done = subprocess.run(
                [*self.ssh(*(["-t"] if terminal else [])), line],
                stdin=None if terminal else theirs,
                text=True,
                capture_output=capture,
                check=False,
            )
        finally:
            os.close(theirs)
            os.close(ours)
        if done.returncode == 255:
            raise self._unreachable(done.stderr or "")
        return done

    @contextmanager
    def tunnel(self, port: int) -> Iterator[int]:
        """Context in which a port of this machine's loopback forwards to one of the head's; yields the local port."""
        local = _free_port()
        forward = f"127.0.0.1:{local}:127.0.0.1:{port}"
        # The remote command ends with its standard input, so with this process however that ends. Its output shows that ssh owns the
        # port, so that no other process that took it meanwhile is sent a token.
        process = subprocess.Popen(
            [*self.ssh("-L", forward, "-o", "ExitOnForwardFailure=yes"), f"echo {shlex.quote(TUNNEL)}; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C goes to this process, which then ends the tunnel
        )
        try:
            assert process.stdout is not None
            answers = process.stdout
            try:
                up = _within(ANSWER_SEC, lambda: any(line.strip() == TUNNEL for line in answers))
            except TimeoutError:
                raise self._unreachable("no answer") from None
            if not up:
                raise self._unreachable(process.stderr.read() if process.stderr else "")
            yield local
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(OSError, ValueError):
                        pipe.close()

    def board(self, sweep: str, port: int) -> int:
        """Run `fewshot-ray board` on the head until Ctrl-C, forwarded to the same port of this machine; returns the exit code."""
        line = shlex.join(["fewshot-ray", "board", sweep, "--port", str(port)])
        forward = ["-L", f"127.0.0.1:{port}:127.0.0.1:{port}", "-o", "ExitOnForwardFailure=yes"]
        # A remote terminal, so that it ends when this side does.
        done = subprocess.run([*self.ssh("-tt", *forward), _in_login_shell(f"exec {line}")], check=False)
        if done.returncode == 255:
            raise self._unreachable("")
        return done.returncode

    def check_can_copy(self) -> None:
        """Raise UserError where a program that `copy_from` needs isn't installed."""
        for program in ("ssh", "rsync"):
            _check_program(program, "files come from the cluster's head with it")

    def copy_from(self, folder: str, local: Path) -> None:
        """Copy a folder of the head into `local`, an empty folder."""
        self.check_can_copy()
        shell = shlex.join(["ssh", *self._options])
        source = f"{self.auth['ssh_user']}@{self.address}:{folder.rstrip('/')}/"
        done = subprocess.run(["rsync", "-az", "-e", shell, source, f"{local}/"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise self._unreachable(done.stderr)

    def _unreachable(self, said: str) -> UserError:
        lines = [line for line in said.splitlines() if line.strip()]
        where = f"{self.auth['ssh_user']}@{self.address}"
        text = f"{self.cluster.path}: {where} can't be reached by SSH ({lines[-1].strip() if lines else 'no answer'})"
        if "HOST IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
            return UserError(f"{text}; if you built the cluster anew, remove ~/.ssh/known_hosts.{self.cluster.name}")
        if "Permission denied" in said:
            return UserError(f"{text}; auth.ssh_user and auth.ssh_private_key as for `ray up` would be right")
        return UserError(f"{text}; is the cluster up? `ray up {self.cluster.path}` starts it")


def _check_program(program: str, why: str) -> None:
    """Raise UserError where the program isn't on PATH."""
    if shutil.which(program) is None:
        raise UserError(f"{program} isn't installed on this machine, and {why}; the package {PACKAGES[program]} would be right")


def _in_login_shell(line: str) -> str:
    """The command that runs `line` with the environment of a terminal on the head, including ~/.bashrc."""
    return f"bash --login -c {shlex.quote(f'. ~/.bashrc; {line}')}"


def _within(seconds: float, work: Callable[[], Answer]) -> Answer:
    """The result of `work`, or its exception. Raises TimeoutError after `seconds`: providers' clients retry for minutes."""
    answer: list[Answer] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not answer:
        raise TimeoutError
    return answer[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
