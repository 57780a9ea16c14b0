"""Which GPU a worker takes, and what its gradients travel over; the choice only, without a GPU."""

from __future__ import annotations

import pytest
import ray.train.torch
import torch

from fewshot_ray.cluster.workers import backend, take_own_gpu


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
