"""Hosts in one machine: each has its own network, processes, name, home and temporary folders, and shares the rest read-only.

Nothing is named outside: a host is its processes, and ends with the one that started it, even when that one is killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
HOME = Path("/root")
NETWORK = "10.77.0"
PROGRAMS = {
    "ip": "iproute2",
    "ss": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "chromium": "chromium",
}
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT = {"PATH": PATH, "HOME": str(HOME), "USER": "root", "SHELL": "/bin/bash", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}

# The first process of a host. The folders that hold Python, its packages and the repository stay where they are, also below a new folder.
FIRST = """
set -eu
for folder in "$@"; do
    exec {kept}<"$folder"
done
for folder in /tmp /var/tmp /run /root /dev/shm; do
    mkdir -p "$folder"
    mount -t tmpfs -o mode=1777 "$NAME" "$folder"
done
chmod 755 /run /root
kept=10
for folder in "$@"; do
    case "$folder" in
        /tmp/* | /var/tmp/* | /run/* | /root/*)
            mkdir -p "$folder"
            mount --no-canonicalize --bind "/proc/self/fd/$kept" "$folder" ;;
    esac
    eval "exec $kept<&-"
    kept=$((kept + 1))
done
# A name that leads to the machine itself, as Debian sets it up.
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$NAME" > /run/hosts
mount --bind /run/hosts /etc/hosts
mount -o remount,bind,ro /
hostname "$NAME"
echo ready
trap : TERM
while :; do sleep 3600; done
"""


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    absent = {package for program, package in PROGRAMS.items() if shutil.which(program, path=PATH) is None}
    if absent:
        return f"not installed: {', '.join(sorted(absent))}"
    if os.geteuid() != 0:
        return "not root"
    needed = "mount -t tmpfs none /run; ip link add switch type bridge; ip link add one type veth peer name other"
    spaces = ["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc"]
    tried = subprocess.run(["unshare", *spaces, "sh", "-ec", needed], capture_output=True, text=True, env={"PATH": PATH})
    return f"no namespaces, or no bridge in one: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass
class Host:
    """One of them, at `address` of the network that they share."""

    name: str
    address: str
    pid: int
    """Of its first process, in the machine's numbers."""
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))
    """What a command typed here finds set."""
    folder: Path = HOME
    """Where it is typed."""

    def path(self, path: str | Path) -> Path:
        """A path of this host as the machine sees it."""
        return Path(f"/proc/{self.pid}/root") / str(path).lstrip("/")

    def start(self, *words: str | Path, output: int | Path = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """`words`, left to run; `output` takes both streams."""
        sink = output if isinstance(output, int) else os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        return subprocess.Popen(
            ["nsenter", f"--target={self.pid}", "--all", f"--wd={self.path(self.folder)}", "--", *map(str, words)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def run(self, *words: str | Path, timeout_sec: float = 120, code: int | None = 0) -> str:
        """What `words` print on either stream, run to their end, with that exit code (None: with any)."""
        process = self.start(*words, output=subprocess.PIPE)
        try:
            printed, _ = process.communicate(timeout=timeout_sec)
        except subprocess.TimeoutExpired:
            process.kill()
            printed, _ = process.communicate()
            raise AssertionError(f"{self.name}$ {' '.join(map(str, words))}: not within {timeout_sec} s\n{printed}") from None
        assert code in (None, process.returncode), f"{self.name}$ {' '.join(map(str, words))}: exit code {process.returncode}\n{printed}"
        return printed

    def interrupt(self, process: subprocess.Popen[str]) -> None:
        """Ctrl-C to what `start` started."""
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)

    def processes(self, command: str = "") -> list[str]:
        """The command lines of what runs here, those with `command` in them."""
        return [line for line in self.run("ps", "-ww", "-e", "-o", "args=").splitlines() if command in line]

    def crash(self) -> None:
        """As when the power fails: the kernel kills all that runs here with the first process."""
        psutil.Process(self.pid).kill()


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[Mapping[str, Host]]:
    """A switch and hosts on it, which see each other and nothing else."""
    with ExitStack() as ending:
        switch = _first(ending, "switch", [])
        _enter(switch, "ip", "link", "add", "switch", "type", "bridge")
        _enter(switch, "ip", "address", "add", f"{NETWORK}.1/24", "dev", "switch")
        _enter(switch, "ip", "link", "set", "switch", "up")
        # What is sent elsewhere is refused at once, instead of lost.
        _enter(switch, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        found = {}
        for number, name in enumerate(names, start=10):
            pid = _first(ending, name, _kept())
            _enter(switch, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
            _enter(switch, "ip", "link", "set", name, "master", "switch", "up")
            _enter(pid, "ip", "address", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
            _enter(pid, "ip", "link", "set", "eth0", "up")
            _enter(pid, "ip", "link", "set", "lo", "up")
            _enter(pid, "ip", "route", "add", "default", "via", f"{NETWORK}.1")
            found[name] = Host(name, f"{NETWORK}.{number}", pid)
        yield found


def _kept() -> list[str]:
    """Python, its packages and the repository."""
    return sorted({str(REPOSITORY), sys.prefix, sys.base_prefix})


def _first(ending: ExitStack, name: str, kept: Sequence[str]) -> int:
    """Starts a host's first process; its id."""
    spaces = ["--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    outer = subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", *spaces, "bash", "-c", FIRST, name, *kept],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={"PATH": PATH, "NAME": name},
        text=True,
    )
    ending.callback(outer.wait, 20)
    ending.callback(outer.kill)
    assert outer.stdout is not None
    said = outer.stdout.readline()
    assert said == "ready\n", f"{name} has not started: {said}"
    (inner,) = psutil.Process(outer.pid).children()
    return inner.pid


def _enter(pid: int, *words: str) -> None:
    """`words` in the network of the host whose first process this is."""
    subprocess.run(["nsenter", f"--target={pid}", "--net", "--", *words], check=True, capture_output=True)


def until(condition: str, holds: Callable[[], object], timeout_sec: float = 60, every_sec: float = 0.25) -> float:
    """Waits until `holds()` is true; the seconds it took."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < timeout_sec, f"not within {timeout_sec} s: {condition}"
        time.sleep(every_sec)
    return time.monotonic() - begun
