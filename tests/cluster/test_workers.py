"""Which GPU a worker takes, and what its gradients travel over; the choice only, without a GPU and a second node."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import psutil
import pytest
import ray
import ray.train.torch
import torch

from fewshot_ray.cluster.workers import PreparedWorker, backend, reduce_over, take_own_gpu


def test_a_worker_takes_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the device that Ray Train gives this worker, of all that it sees; nothing is asked of PyTorch where no GPU was."""
    taken: list[torch.device] = []
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: torch.device("cuda", 3))
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    take_own_gpu(0)
    assert taken == []
    take_own_gpu(1)
    assert taken == [torch.device("cuda", 3)]


@pytest.mark.parametrize(("gpus", "expected"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl"), (2, "nccl")])
def test_what_gradients_travel_over(gpus: float, expected: str) -> None:
    """Oracle: NCCL's own rule, no two ranks on one GPU."""
    assert backend(gpus) == expected


NAMES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is set, and what a test sets is gone after it."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        del os.environ[name]


def test_the_interface_of_rays_address(no_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand; two interfaces whose names begin alike, as NCCL would take both for `eth1`."""

    def of(ip: str) -> list[object]:
        return [SimpleNamespace(address="02:00:00:00:00:00"), SimpleNamespace(address=ip)]

    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"lo": of("127.0.0.1"), "eth1": of("10.0.0.5"), "eth11": of("10.1.0.5")})
    reduce_over("10.0.0.5")
    assert [os.environ[name] for name in NAMES] == ["=eth1", "eth1"]


def test_a_worker_prepares_before_its_group_is_made(no_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: Ray Train's own call, on this process: the address is Ray's, and SIGTERM gives notice."""
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    before = signal.getsignal(signal.SIGTERM)
    try:
        PreparedWorker().after_init_train_context()
        assert signal.getsignal(signal.SIGTERM) is not before
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [os.environ[name] for name in NAMES] == ["=lo", "lo"]


def test_a_users_interface_stays(no_names: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: only what is not set is."""
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    reduce_over("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "ib0"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"


def test_an_address_of_no_interface(no_names: None) -> None:
    """Oracle: then the libraries choose, as they would have. The address is one of those kept for documents."""
    reduce_over("192.0.2.7")
    assert [os.environ.get(name) for name in NAMES] == [None, None]
