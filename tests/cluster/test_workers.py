"""Which GPU a worker takes, and what its gradients travel over; the choice only, without a GPU and a second node."""

from __future__ import annotations

import os
from types import SimpleNamespace

import psutil
import pytest
import ray.train.torch
import torch

from fewshot_ray.cluster.workers import backend, reduce_over, take_own_gpu


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
