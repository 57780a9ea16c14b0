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

from fewshot_ray.errors import UserError
from fewshot_ray.launch.cluster_file import read_cluster_file
from fewshot_ray.launch.head import ANSWER_SEC, Head

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


def stand_in(name: str, lines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of these lines of the shell's, found before any other of its name: the real ones need not be there."""
    program = tmp_path / "bin" / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def ssh_that_says(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that fails with these words."""
    stand_in("ssh", f"cat >&2 <<'END'\n{text}\nEND\nexit 255", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ([], "ssh isn't installed on this machine, .*; the package openssh-client would be right$"),
        (["ssh"], "rsync isn't installed on this machine, .*; the package rsync would be right$"),
    ],
)
def test_a_program_that_is_missing(programs: list[str], message: str, head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the rule for messages; a cluster's file alone needs none of them, a command rsync only where it copies."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for program in programs:
        stand_in(program, "exit 0", tmp_path, monkeypatch)
        assert found(head).run("true", capture=True).returncode == 0
    with pytest.raises(UserError, match=message):
        found(head).copy_from("/model", tmp_path)
    if not programs:
        with pytest.raises(UserError, match=message), found(head).tunnel(8265):
            pass
        with pytest.raises(UserError, match=message):
            found(head).board("far", 6006)


def test_a_folder_comes_home(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: rsync's manual on `-e` and on what a slash at the source's end means, by a stand-in that writes down what it is told."""
    stand_in("ssh", "exit 0", tmp_path, monkeypatch)
    stand_in("rsync", f'for word; do echo "$word"; done > {tmp_path}/told', tmp_path, monkeypatch)
    found(head).copy_from("/model", tmp_path / "home")
    _, _, shell, source, target = (tmp_path / "told").read_text().splitlines()
    assert shell.startswith("ssh -o BatchMode=yes ")
    assert (source, target) == ("nobody@192.0.2.1:/model/", f"{tmp_path}/home/")
    stand_in("rsync", "echo 'link_stat \"/model\" failed' >&2; exit 23", tmp_path, monkeypatch)
    with pytest.raises(UserError, match="link_stat"):
        found(head).copy_from("/model", tmp_path / "home")


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


def test_a_host_that_does_not_answer(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: an ssh that says nothing is given up within ten seconds, and some for a busy machine."""
    assert ANSWER_SEC < 10
    stand_in("ssh", "exec sleep 100", tmp_path, monkeypatch)
    began = time.monotonic()
    with pytest.raises(UserError, match="can't be reached by SSH"), found(head).tunnel(8265):
        pass
    assert time.monotonic() - began < 15


def test_a_tunnel_is_there_once_ssh_says_so(head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a port that somebody else listens on is no tunnel, however soon it answers; and ssh ends with the block."""
    lines = [f"echo $$ > {tmp_path}/pid", "echo a login script speaks", "sleep 0.5", "for last; do :; done", 'eval "$last"']
    stand_in("ssh", "\n".join(lines), tmp_path, monkeypatch)
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        monkeypatch.setattr("fewshot_ray.launch.head._free_port", lambda: port)
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
from fewshot_ray.launch.cluster_file import read_cluster_file
from fewshot_ray.launch.head import Head

head = Head(read_cluster_file(Path(sys.argv[1])))
head.__dict__["address"] = "192.0.2.1"
print(head.run("sh", "-c", sys.argv[2], capture=True), flush=True)
"""


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ssh that runs what it is told, here, by whatever shell there is in bash's place."""
    (tmp_path / ".bashrc").touch()
    stand_in("ssh", 'for last; do :; done\nexec sh -c "$last"', tmp_path, monkeypatch)
    stand_in("bash", 'test "$1" = --login && shift\nexec sh "$@"', tmp_path, monkeypatch)


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
