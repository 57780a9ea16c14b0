"""Two drivers on one sweep are refused; a driver that is gone is not waited for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

import pytest

from fewshot_ray.cluster import lease as module
from fewshot_ray.cluster.lease import LEASE, Holder, Lease, _started
from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A sweep's folder; where nothing is remote the settling time is cut."""
    monkeypatch.setattr(module, "SETTLE_SEC", 0.05)
    return Folder(tmp_path) if request.param == "disk" else Folder(f"memory://{uuid4().hex}")


def held_by(folder: Folder, **changes: object) -> Holder:
    """Another driver's lease, put where it would be."""
    own = Holder("another", "elsewhere", 17, "1", time.time() - 5)
    holder = replace(own, **changes)  # type: ignore[arg-type]
    folder.write_text(LEASE, json.dumps(asdict(holder)))
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
    """Oracle: 60 seconds: refused at 5, with the time that is left; past 60 it is watched, and taken over where nothing changes."""
    monkeypatch.setattr(module, "WATCH_SEC", 0.2)
    held_by(folder)
    with pytest.raises(UserError, match=r"process 17 on elsewhere .* \(last heard of 5 s ago\).* free 5[45] s from now"), Lease(folder):
        pass
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
        held_by(folder, host=socket.gethostname(), pid=process.pid, started=begun)
        with pytest.raises(UserError, match="runs this sweep"), Lease(folder):
            pass
        held_by(folder, host=socket.gethostname(), pid=process.pid, started="before")
        with Lease(folder):
            pass
    finally:
        process.kill()
        process.wait()
    held_by(folder, host=socket.gethostname(), pid=process.pid, started=begun)
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
    monkeypatch.setattr(module, "RENEW_SEC", 0.02)
    with Lease(folder) as lease:
        time.sleep(0.1)
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
