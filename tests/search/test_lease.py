"""Two drivers on one sweep are refused; a driver that is gone is not waited for."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from fewshot_ray.conditional import OutdatedError, Seen, look, write_where
from fewshot_ray.errors import UserError
from fewshot_ray.search import lease as module
from fewshot_ray.search.lease import LEASE, STALE_SEC, Holder, Lease, _started, _system, check_free, is_driven
from fewshot_ray.storage import Folder
from tests.faulty_proxy import KEYS, Fault, FaultyProxy, s3_server

KINDS = {"disk": True, "memory": False, "S3 that compares": True, "S3 that doesn't": False}
"""Places, and whether of two writers only one can succeed there."""
HERE = {"host": socket.gethostname(), "boot": _system()[0], "namespace": _system()[1]}


@pytest.fixture(scope="module")
def comparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """A store that keeps conditions: AWS can't be had here."""
    with s3_server(tmp_path_factory.mktemp("s3")) as port, FaultyProxy(port, conditional=True) as proxy:
        yield proxy


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """One of KINDS."""
    return str(request.param)


@pytest.fixture
def folder(kind: str, comparing: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """A sweep's folder, empty; the settling time is cut."""
    monkeypatch.setattr(module, "SETTLE_SEC", 0.05)
    if kind == "disk":
        yield Folder(tmp_path / "sweep")
        return
    if kind == "memory":
        yield Folder(f"memory://{uuid4().hex}")
        return
    port = comparing.port if KINDS[kind] else comparing.upstream_port
    for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{port}", "ACCESS_KEY_ID": KEYS[0], "SECRET_ACCESS_KEY": KEYS[1]}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    clients = fsspec.get_filesystem_class("s3")
    clients.clear_instance_cache()  # the next client takes its endpoint from the environment as it is then
    yield Folder(f"s3://bucket/{uuid4().hex}")
    clients.clear_instance_cache()


def held_by(folder: Folder, **changes: object) -> Holder:
    """Another driver's lease, put where it would be."""
    own = Holder("another", "elsewhere", 17, "1", time.time() - 5)
    holder = replace(own, **changes)  # type: ignore[arg-type]
    while True:
        with suppress(OutdatedError):  # as a driver does
            write_where(folder, LEASE, json.dumps(asdict(holder)).encode(), look(folder, LEASE))
            return holder


def test_a_second_driver_is_refused(folder: Folder) -> None:
    """Oracle: the message; the first keeps its lease, and the sweep is free after it."""
    with Lease(folder) as first:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on {socket.gethostname()} runs this sweep"), Lease(folder):
            pass
        first.check()
        assert folder.exists(LEASE)
    assert not folder.exists(LEASE)
    with Lease(folder):
        pass


def test_a_silent_driver_elsewhere_is_waited_for_until_it_is_stale(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: 60 seconds: refused after 5, with the time that is left; past 60 it is watched, and taken over where nothing changes."""
    monkeypatch.setattr(module, "WATCH_SEC", 0.2)
    held_by(folder)
    with pytest.raises(UserError, match="process 17 on elsewhere") as held, Lease(folder):
        pass
    said = re.search(r"\(last heard of (\d+) s ago\).* free (\d+) s from now", str(held.value))
    assert said
    ago, left = map(int, said.groups())
    assert 5 <= ago < 20  # the machine may be busy meanwhile
    assert ago + left == pytest.approx(60, abs=1)
    held_by(folder, renewed_sec=time.time() - 61)
    with Lease(folder) as lease:
        assert lease.holder() is not None
        assert json.loads(folder.read_text(LEASE))["token"] == lease.token


@pytest.mark.parametrize("skew_sec", [-300, 300])
def test_clocks_that_differ(folder: Folder, skew_sec: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a driver that renews lives, whatever its clock says; one that doesn't is gone, also where its clock goes ahead."""
    monkeypatch.setattr(module, "WATCH_SEC", 0.6)
    held_by(folder, renewed_sec=time.time() + skew_sec)
    renewal = threading.Timer(0.2, lambda: held_by(folder, renewed_sec=time.time() + skew_sec))
    renewal.start()
    with pytest.raises(UserError, match="process 17 on elsewhere runs this sweep"), Lease(folder):
        pass
    renewal.join()
    with Lease(folder) as lease:
        lease.check()


def test_a_killed_driver_on_this_machine_is_not_waited_for(folder: Folder) -> None:
    """Oracle: a real process, alive and then killed; and one that has taken its number since."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        begun = _started(process.pid)
        held_by(folder, **HERE, pid=process.pid, started=begun)
        with pytest.raises(UserError, match="runs this sweep"), Lease(folder):
            pass
        held_by(folder, **HERE, pid=process.pid, started="before")
        with Lease(folder):
            pass
    finally:
        process.kill()
        process.wait()
    held_by(folder, **HERE, pid=process.pid, started=begun)
    with Lease(folder):
        pass


def test_what_can_not_be_read_is_nobodys(folder: Folder) -> None:
    """Oracle: a lease cut short by a crash doesn't lock the sweep for ever."""
    for text in ("", "{", "[]", '{"token": 1}', "null"):
        folder.write_text(LEASE, text)
        with Lease(folder):
            pass


def test_a_driver_whose_lease_was_taken_writes_no_more(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: another token in the file: `check` raises, and the other's lease stays when this one ends."""
    monkeypatch.setattr(module, "RENEW_SEC", 0.5)
    with Lease(folder) as lease:
        first = lease.holder()
        assert first is not None
        # Just after it has renewed: a store that doesn't compare lets it write over what comes between its reading and its writing.
        while (now := lease.holder()) is None or now.renewed_sec == first.renewed_sec:
            time.sleep(0.02)
        lease.check()
        other = held_by(folder)
        for _ in range(200):
            if lease.lost:
                break
            time.sleep(0.02)
        with pytest.raises(UserError, match="taken this sweep over"):
            lease.check()
    assert json.loads(folder.read_text(LEASE)) == asdict(other)


def test_it_is_renewed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the time in the file goes on."""
    monkeypatch.setattr(module, "RENEW_SEC", 0.02)
    with Lease(folder) as lease:
        first = lease.holder()
        assert first is not None
        for _ in range(200):
            now = lease.holder()
            if now is not None and now.renewed_sec > first.renewed_sec:
                return
            time.sleep(0.02)
    pytest.fail("never renewed")


@pytest.mark.parametrize("other", [{"namespace": "pid:[1]"}, {"boot": "another"}, {"host": "another"}, {"boot": "", "namespace": ""}])
def test_a_number_says_nothing_of_another_machine_or_namespace(other: dict[str, str], tmp_path: Path) -> None:
    """Two containers of one host name, or two machines. Oracle: the number is nobody's here, and the lease is fresh: it is not taken."""
    folder = Folder(tmp_path)
    held_by(folder, **{**HERE, "pid": 2**22 + 1, "started": "1", **other})
    with pytest.raises(UserError, match="runs this sweep"), Lease(folder):
        pass


def test_what_another_release_wrote(tmp_path: Path) -> None:
    """Oracle: a live lease without the newer keys, and one with keys that aren't known, still hold."""
    folder = Folder(tmp_path)
    tree = asdict(held_by(folder))
    for changed in ({key: value for key, value in tree.items() if key not in ("boot", "namespace")}, {**tree, "later": 1}):
        folder.write_text(LEASE, json.dumps(changed))
        with pytest.raises(UserError, match="process 17 on elsewhere runs this sweep"), Lease(folder):
            pass


@pytest.mark.parametrize("before", ["nothing", "a stale lease", "nonsense"])
def test_of_many_that_start_at_once_one_has_it(before: str, kind: str, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: never two at a time; where the place compares, one always. Elsewhere the real settling time is taken."""
    compares = KINDS[kind]
    monkeypatch.setattr(module, "WATCH_SEC", 0.1)
    if not compares:
        monkeypatch.setattr(module, "SETTLE_SEC", 1.5)
    for _ in range(10 if folder.local is not None else 3 if compares else 1):
        folder.remove()
        if before == "a stale lease":
            held_by(folder, renewed_sec=time.time() - 2 * STALE_SEC)
        elif before == "nonsense":
            folder.write_text(LEASE, "{")
        inside, refused = start_at_once(folder, 12)
        assert len(inside) + len(refused) == 12
        assert len(inside) == 1 if compares else len(inside) <= 1
        assert all(re.search("at the same moment|runs this sweep", line) for line in refused)


def start_at_once(folder: Folder, number: int) -> tuple[list[str], list[str]]:
    """Tokens of those that got the lease, which none gives back before all have tried, and what was said to the others."""
    inside: list[str] = []
    refused: list[str] = []
    ready, tried = threading.Barrier(number), threading.Barrier(number)

    def start() -> None:
        lease = Lease(folder)
        ready.wait(60)
        try:
            with lease:
                inside.append(lease.token)
                tried.wait(60)
        except UserError as error:
            refused.append(str(error))
            tried.wait(60)

    threads = [threading.Thread(target=start) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return inside, refused


def test_processes_that_start_at_once(tmp_path: Path) -> None:
    """Oracle: real processes on disk, as several shells begin the same file: one has it."""
    script = """
import sys
from fewshot_ray.search.lease import Lease
from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder
print("ready", flush=True)
input()
try:
    with Lease(Folder(sys.argv[1])):
        print("inside", flush=True)
        input()
except UserError:
    print("refused", flush=True)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        assert [process.stdout.readline() for process in started if process.stdout] == ["ready\n"] * 4
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        said = sorted(process.stdout.readline() for process in started if process.stdout)
        assert said == ["inside\n", "refused\n", "refused\n", "refused\n"]
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_what_a_place_does_with_conditions_is_found_out(kind: str, folder: Folder) -> None:
    """Oracle: KINDS."""
    with Lease(folder) as lease:
        assert lease.compares == KINDS[kind]


@pytest.mark.parametrize("kind", ["S3 that compares"])
@pytest.mark.parametrize("code", ["NotImplemented", "InvalidArgument"])
def test_a_store_that_refuses_the_headers(code: str, kind: str, folder: Folder, comparing: FaultyProxy) -> None:
    """Oracle: a lease by ordinary writes."""
    comparing.faults.extend([Fault("status", method="PUT", path=LEASE, status=501 if code == "NotImplemented" else 400, code=code)])
    with Lease(folder) as lease:
        assert not comparing.faults
        lease.check()
        with pytest.raises(UserError, match="runs this sweep"), Lease(folder):
            pass
    assert not folder.exists(LEASE)


@pytest.mark.parametrize("kind", ["S3 that compares"])
@pytest.mark.parametrize("before", ["nothing", "a stale lease"])
def test_a_write_whose_answer_was_lost_is_ones_own(
    before: str, kind: str, folder: Folder, comparing: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the first PUT is done and unanswered, the second gets 412: read back, the lease is this process's."""
    monkeypatch.setattr(module, "WATCH_SEC", 0.1)
    if before == "a stale lease":
        held_by(folder, renewed_sec=time.time() - 2 * STALE_SEC)
    comparing.faults.append(Fault("lost", method="PUT", path=LEASE))
    with Lease(folder) as lease:
        lease.check()
        assert not comparing.faults
        assert lease.compares
        with pytest.raises(UserError, match="runs this sweep"), Lease(folder):
            pass


def test_a_lease_that_was_removed_by_hand_comes_back(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the file is there again, with the same token, and it isn't lost."""
    monkeypatch.setattr(module, "RENEW_SEC", 0.05)
    with Lease(folder) as lease:
        folder.remove(LEASE)
        for _ in range(200):
            if (now := lease.holder()) is not None:
                break
            time.sleep(0.02)
        assert now is not None
        assert now.token == lease.token
        lease.check()


def test_one_that_was_silent_while_another_drove_the_sweep_to_its_end(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: no lease is there, as the other gave it back, and this one's last renewal is past 60 s: it is lost, and none is written."""
    monkeypatch.setattr(module, "RENEW_SEC", 0.5)
    with Lease(folder) as lease:
        folder.remove(LEASE)
        monkeypatch.setattr(module, "STALE_SEC", 0.1)
        for _ in range(200):
            if lease.lost:
                break
            time.sleep(0.02)
        with pytest.raises(UserError, match="taken this sweep over"):
            lease.check()
    assert not folder.exists(LEASE)


def test_whether_a_sweep_is_driven(tmp_path: Path) -> None:
    """Oracle: by hand. On this machine by its process, however old its word (a suspended laptop's); elsewhere by the age of that."""
    folder = Folder(tmp_path)
    assert not is_driven(folder)
    with Lease(folder):
        assert is_driven(folder)
    assert not is_driven(folder)
    here = Holder("t", **HERE, pid=os.getpid(), started=_started(os.getpid()), renewed_sec=time.time() - 10 * STALE_SEC)
    elsewhere = replace(here, host="elsewhere")
    for holder, driven in (
        (here, True),
        (replace(here, started="0"), False),
        (elsewhere, False),
        (replace(elsewhere, renewed_sec=time.time() - STALE_SEC / 2), True),
        (replace(elsewhere, renewed_sec=time.time() + STALE_SEC), True),  # its clock goes ahead
    ):
        folder.write_text(LEASE, json.dumps(asdict(holder)))
        assert is_driven(folder) == driven
    folder.write_text(LEASE, "{")
    assert not is_driven(folder)


@pytest.mark.parametrize("error", [ValueError("why the sweep ended"), None])
def test_a_lease_that_can_not_be_given_back_hides_nothing(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Oracle: the storage is away at the end: the sweep's own error, or its end, is what is seen, and one line is logged."""

    def away(folder: Folder, name: str) -> Seen:
        raise UserError("storage away")

    with suppress(ValueError), Lease(Folder(tmp_path)):
        monkeypatch.setattr(module, "look", away)
        if error is not None:
            raise error
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: the lease couldn't be given back (storage away); the sweep is free in 60 s"
    ]


def test_a_driver_that_was_suspended_for_hours_keeps_its_sweep(tmp_path: Path) -> None:
    """Oracle: by hand: its process runs here (a laptop that was closed), though its lease is two hours old."""
    folder = Folder(tmp_path)
    held_by(folder, **HERE, pid=os.getpid(), started=_started(os.getpid()), renewed_sec=time.time() - 7200)
    with pytest.raises(UserError, match="runs this sweep"), Lease(folder):
        pass


def test_a_number_alone_holds_no_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand: on macOS, after a restart, another process has the number of the driver that is gone."""
    monkeypatch.setattr(module, "_started", lambda pid: "alive")
    monkeypatch.setattr(module, "_system", lambda: ("", ""))
    folder = Folder(tmp_path)
    held_by(folder, host=socket.gethostname(), pid=os.getpid(), started="alive")
    with pytest.raises(UserError, match="runs this sweep"):
        check_free(folder)
    assert is_driven(folder)
    held_by(folder, host=socket.gethostname(), pid=os.getpid(), started="alive", renewed_sec=time.time() - 7200)
    check_free(folder)
    assert not is_driven(folder)
    with Lease(folder) as lease:
        assert lease.holder() is not None
