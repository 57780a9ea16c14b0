"""What is said when a cluster's head can't be reached: one line, within ten seconds, and what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fewshot_ray.cluster.cluster_file import read_cluster_file
from fewshot_ray.cluster.head import ANSWER_SEC, Head
from fewshot_ray.errors import UserError

FILE = """\
cluster_name: %s
provider: {type: local, head_ip: 192.0.2.1, worker_ips: [192.0.2.2]}
auth: {ssh_user: nobody, ssh_private_key: %s}
"""


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Head:
    """Of a cluster whose file is right, and which may not be there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    key = tmp_path / "key"
    key.write_text("")
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE % (f"absent{os.getpid()}", key))
    return Head(read_cluster_file(path))


def found(head: Head) -> Head:
    """The same where the provider knows of a head."""
    head.__dict__["address"] = "192.0.2.1"
    return head


def ssh_that_says(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that fails with these words."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{text}\nEND\nexit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_a_cluster_that_is_not_up(head: Head) -> None:
    """Oracle: the rule for messages."""
    with pytest.raises(UserError, match=r"cluster.yaml: cluster absent\d+ has no head that runs; `ray up .*cluster.yaml` starts it$"):
        _ = head.address


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("nobody@192.0.2.1: Permission denied (publickey).", "auth.ssh_user and auth.ssh_private_key as for `ray up` would be right"),
        (
            "@ WARNING @\nREMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.",
            "if you built the cluster anew, remove ~/.ssh/known",
        ),
        ("ssh: connect to host 192.0.2.1 port 22: Connection refused", r"\(.*Connection refused\); is the cluster up\?"),
        ("bind [127.0.0.1]:6006: Address already in use\nCould not request local forwarding.", r"\(Could not request local forwarding.\)"),
        ("", r"\(no answer\); is the cluster up\?"),
    ],
)
def test_what_ssh_says(said: str, message: str, head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: ssh's own words, and the remedy, in one line, for commands and tunnels alike."""
    ssh_that_says(said, tmp_path, monkeypatch)
    with pytest.raises(UserError, match=message) as raised:
        found(head).run("true", capture=True)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=message), found(head).tunnel(8265):
        pass


def test_a_host_that_does_not_answer(head: Head) -> None:
    """Oracle: it is given up within ten seconds, and some for a busy machine. 192.0.2.0/24 is set aside for examples: nobody is there."""
    assert ANSWER_SEC < 10
    began = time.monotonic()
    with pytest.raises(UserError, match="can't be reached by SSH"), found(head).tunnel(8265):
        pass
    assert time.monotonic() - began < 15


def test_a_tunnel_is_there_once_ssh_says_so(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a port that somebody else listens on is no tunnel, however soon it answers; and ssh ends with the block."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "ssh"
    lines = ["#!/bin/sh", f"echo $$ > {tmp_path}/pid", "echo a login script speaks", "sleep 0.5", "for last; do :; done", 'eval "$last"']
    program.write_text("\n".join(lines))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setattr("fewshot_ray.cluster.head._free_port", lambda: port)
        began = time.monotonic()
        with found(head).tunnel(8265) as local:
            assert local == port
            assert time.monotonic() - began >= 0.5
            pid = int((tmp_path / "pid").read_text())
            assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


RUN = """
import sys
from pathlib import Path
from fewshot_ray.cluster.cluster_file import read_cluster_file
from fewshot_ray.cluster.head import Head

head = Head(read_cluster_file(Path(sys.argv[1])))
head.__dict__["address"] = "192.0.2.1"
print(head.run("sh", "-c", sys.argv[2], capture=True), flush=True)
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that runs what it is told, here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / ".bashrc").touch()
    program = tmp_path / "bin" / "ssh"
    program.write_text('#!/bin/bash\nexec bash -c "${@: -1}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_what_a_command_says_there(head: Head, there: None) -> None:
    """Oracle: the command's own output and exit code, where its arguments have blanks and quotes."""
    done = found(head).run("sh", "-c", 'echo "it\'s here"; echo wrong >&2; exit 3', capture=True)
    assert (done.stdout, done.stderr, done.returncode) == ("it's here\n", "wrong\n", 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_runs_there_ends_with_the_command_here(number: int, head: Head, there: None, tmp_path: Path) -> None:
    """Oracle: the list of processes; Ctrl-C reaches ssh as well, a killed terminal this side alone."""
    mark = tmp_path / "runs"
    words = [sys.executable, "-c", RUN, str(head.cluster.path), f"echo $$ > {mark}; exec sleep 1000"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while not (mark.exists() and mark.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        running = psutil.Process(int(mark.read_text()))
        os.killpg(process.pid, number) if number == signal.SIGINT else process.kill()
        process.wait(20)
    running.wait(20)
