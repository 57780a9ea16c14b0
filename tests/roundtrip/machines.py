"""The hosts of the round trip: a laptop, three nodes that take SSH, and a store they can reach."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.faulty_proxy import KEYS
from tests.roundtrip.hosts import HOME, PATH, REPOSITORY, Host, hosts, until

NODES = ("head", "worker1", "worker2")
STORE_PORT = 9000
SSHD = """
ListenAddress {address}
HostKey {home}/.ssh/host_key
AuthorizedKeysFile {home}/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
MaxStartups 100
SetEnv {environment}
"""


@contextmanager
def machines() -> Iterator[Mapping[str, Host]]:
    """Laptop, head, two workers and storage. The laptop's key opens the nodes; nodes alone have the store's keys."""
    with hosts(("laptop", *NODES, "storage")) as found:
        _store(found["storage"])
        laptop = found["laptop"]
        _key(laptop, "id_ed25519")
        known = ""
        for name in NODES:
            _key(found[name], "host_key")
            known += f"{found[name].address} {_public(found[name], 'host_key')}"
            _node(found[name], _public(laptop, "id_ed25519"), f"http://{found['storage'].address}:{STORE_PORT}")
        laptop.path(HOME / ".ssh/known_hosts").write_text(known)
        yield found


def _store(host: Host) -> None:
    """An S3 server with a bucket."""
    host.path("/tmp/s3/bucket").mkdir(parents=True)
    keys = f"{KEYS[0]},{KEYS[1]}"
    address = f"{host.address}:{STORE_PORT}"
    at_once = ("--vfs-cache-mode", "writes", "--vfs-write-back", "0s")  # what is written is a file at once
    host.start("rclone", "serve", "s3", "--auth-key", keys, "--addr", address, *at_once, "/tmp/s3")
    until("the store answers", lambda: host.run("ss", "-Hltn", f"sport = {STORE_PORT}"))


def _key(host: Host, name: str) -> None:
    host.path(HOME / ".ssh").mkdir(mode=0o700, exist_ok=True)
    host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", f"{HOME}/.ssh/{name}")


def _public(host: Host, name: str) -> str:
    return host.path(HOME / f".ssh/{name}.pub").read_text()


def _node(host: Host, key: str, store: str) -> None:
    """Takes SSH with `key`. What its administrator has set for everybody: where Python is, the store, and how long Ray misses its head."""
    host.environment |= {
        "AWS_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": KEYS[0],
        "AWS_SECRET_ACCESS_KEY": KEYS[1],
        "AWS_DEFAULT_REGION": "us-east-1",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "20",  # by default a minute, which would be waited for after `ray down`
        "PYTHONPATH": f"{HOME}/fewshot-ray",  # in place of its installation: the code that `ray up` has brought
    }
    variables = " ".join(f"{name}={value}" for name, value in host.environment.items() if name not in ("HOME", "USER", "SHELL"))
    host.path(HOME / ".ssh/authorized_keys").write_text(key)
    host.path(HOME / "fewshot-ray").mkdir()
    host.path(HOME / "fewshot-ray/.venv").symlink_to(sys.prefix)
    host.path(HOME / ".bashrc").write_text(f"export PATH={PATH}\n")  # a login shell sets its own first
    host.path("/run/sshd").mkdir(mode=0o755)
    host.path("/run/sshd_config").write_text(SSHD.format(address=host.address, home=HOME, environment=variables))
    host.start("/usr/sbin/sshd", "-D", "-e", "-f", "/run/sshd_config", output=host.path("/run/sshd.log"))
    until("sshd listens", lambda: host.run("ss", "-Hltn", "sport = 22"))


def cluster_file(found: Mapping[str, Host]) -> str:
    """The shipped file with its gaps filled in; each node has one CPU to give.

    The commands that fetch Python and the packages are left out: there is no network to fetch them from, and they are there.
    """
    text = (REPOSITORY / "cluster/onprem.yaml").read_text()
    for gap, value in {
        "<address of the head>": found["head"].address,
        "<address of a worker>": ", ".join(found[name].address for name in NODES[1:]),
        "<user>": "root",
        "ray start ": "ray start --num-cpus=1 ",
    }.items():
        assert gap in text, f"cluster/onprem.yaml: no {gap} to fill in"
        text = text.replace(gap, value)
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("  - . ~/.fewshot-ray.sh && ")]
    assert len(lines) - len(kept) == 3, "cluster/onprem.yaml: three commands that fetch packages"
    return "".join(kept)
