"""What stops a run is said by `check` and by `run` alike, before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager as Block
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from fewshot_ray.cluster import needs
from fewshot_ray.search import lease
from fewshot_ray.search.lease import Lease
from fewshot_ray.storage import Folder
from tests.cli.conftest import Answer, Command, Desk

Circumstance = Callable[[Desk, pytest.MonkeyPatch], Block[Any]]


def machine(**have: float) -> Circumstance:
    """What Ray finds on it, told to Ray itself."""

    def arrange(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Block[Any]:
        monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", json.dumps(have))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        return nullcontext()

    return arrange


def long_path(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Block[Any]:
    monkeypatch.setenv("RAY_TMPDIR", f"{desk.folder}/{60 * 'x'}")
    return nullcontext()


def free(number: int) -> Circumstance:
    """Bytes on the storage's disk."""

    def arrange(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Block[Any]:
        monkeypatch.setattr(needs, "_free_bytes", lambda place: number)
        return nullcontext()

    return arrange


@contextmanager
def another_driver(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lease, "RENEW_SEC", 1000.0)  # it writes nothing meanwhile
    with Lease(Folder(desk.tree["storage"]) / "mine"):
        yield


REFUSED: dict[str, tuple[dict[str, Any], Circumstance, str]] = {
    "no GPU": (
        {"resources": {"gpus_per_worker": 1}},
        machine(CPU=2, GPU=0),
        "resources: a trial asks for 1 GPUs (1 workers), this machine has 0; at most that would be right",
    ),
    "GPUs that PyTorch can't use": (
        {"resources": {"gpus_per_worker": 0.5}},
        machine(CPU=2, GPU=2),
        "resources.gpus_per_worker: 0.5 given, but PyTorch sees no GPU here; 0 would run on the CPU",
    ),
    "no GPU to share": (
        {"resources": {"gpus_per_worker": "auto"}},
        machine(CPU=2, GPU=0),
        "resources.gpus_per_worker: 'auto' given, but this machine has no GPU; 0 would run on the CPU",
    ),
    "more workers than cores": (
        {"resources": {"workers": 3}},
        machine(CPU=2, GPU=0),
        "resources: a trial asks for 3 CPUs (3 workers), this machine has 2; at most that would be right",
    ),
    "workers in parts": (
        {"resources": {"workers": 2, "cpus_per_worker": 1.5}},
        machine(CPU=2, GPU=0),
        "resources: a trial asks for 3 CPUs (2 workers), this machine has 2; at most that would be right",
    ),
    "a range and no number of trials": (
        {"train": {"steps": 4, "batch_size": 4, "lr": {"log": [1e-5, 1e-3]}}, "search": {"sampler": "random"}},
        machine(CPU=2, GPU=0),
        "train.lr: is to be searched, and nothing says with how many trials; `trials: 24` below `search`, say, is right",
    ),
    "a declared range and no search": (
        {"method": {"sdft": "search"}, "search": None},
        machine(CPU=2, GPU=0),
        "method.sdft: is to be searched, and nothing says with how many trials; `search: {trials: 24}`, say, is right",
    ),
    "a folder too long for sockets": ({}, long_path, "bytes too long for the sockets in it; RAY_TMPDIR naming a folder that is there"),
    "a small disk": ({}, free(100_000), "'s disk has 0.1 MB free, and a checkpoint of a trial takes "),
    "another driver": ({}, another_driver, " runs this sweep (last heard of "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_check_and_run_say_the_same(case: str, desk: Desk, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: each other's line, and what is known to be missing."""
    changes, arrange, said = REFUSED[case]
    desk.tree |= changes
    desk.tree = {section: values for section, values in desk.tree.items() if values is not None}
    desk.write()
    with arrange(desk, monkeypatch):
        before = desk.contents()
        answers: list[Answer] = [fewshot(command, desk.file) for command in ("check", "run")]
        assert desk.contents() == before
    assert [answer.code for answer in answers] == [2, 2]
    one, other = (re.sub(r"\d+ s\b", "N s", answer.err) for answer in answers)  # seconds pass between the two
    assert one == other
    assert said in answers[0].err
    assert answers[0].err.count("\n") == 1


def test_a_disk_that_may_be_too_small(desk: Desk, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a trial's checkpoint is a float32 of each weight, its average and Adam's two moments, in two folds."""
    desk.write()
    numbers = sum(tensor.numel() for tensor in _weights(desk).values())
    one = 2 * 16 * numbers
    with free(one)(desk, monkeypatch):
        answer = fewshot("check", desk.file)
    assert answer.code == 0, answer.err
    assert f"{desk.folder}/sweeps/mine's disk has {one / 1e6:.3g} MB free, and the sweep's checkpoints take" in answer.out
    with free(one - 1)(desk, monkeypatch):
        assert fewshot("check", desk.file).code == 2


def _weights(desk: Desk) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(desk.folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def test_a_disk_is_the_storages_own(desk: Desk, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the place that is asked: the nearest that is there already."""
    asked = []
    monkeypatch.setattr(needs, "_free_bytes", lambda place: asked.append(place) or 10**12)
    assert fewshot("check", desk.write()).code == 0
    assert asked == [desk.folder]
