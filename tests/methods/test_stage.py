from pathlib import Path
from uuid import uuid4

import pytest
import torch

from fewshot_ray.methods.stage import Stage, build, read
from fewshot_ray.storage import Folder


@pytest.fixture(params=["disk", "memory"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    return Folder(tmp_path if request.param == "disk" else f"memory://{uuid4().hex}/cache")


class Work:
    """Counts how often it is done."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.done += 1
        return {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor([1, 2], dtype=torch.uint8)}


def test_it_is_computed_once(cache: Folder) -> None:
    """Oracle: a counter, and the tensors that went in (a transposed one among them)."""
    work = Work()
    stage = Stage("work", {"data": "x", "steps": 3}, work)
    for _ in range(2):
        tensors = read(stage, cache)
        assert all(torch.equal(tensors[name], value) for name, value in Work()().items())
    build(stage, cache)
    assert work.done == 1
    assert read(Stage("work", {"steps": 3, "data": "x"}, work), cache).keys() == {"a", "b"}
    assert work.done == 1
    read(Stage("work", {"steps": 4, "data": "x"}, work), cache)
    assert work.done == 2


def test_half_written_work_is_done_again(cache: Folder) -> None:
    """Oracle: a counter: without the description, which is written last, the tensors don't count."""
    work = Work()
    stage = Stage("work", {}, work)
    build(stage, cache)
    (cache / stage.key).remove("stage.json")
    read(stage, cache)
    assert work.done == 2


def test_keys() -> None:
    """Oracle: sha256 of the canonical JSON, by the sha256sum tool; the order of the dependencies doesn't matter, the name does."""
    key = Stage("work", {"b": 1, "a": 2.5}, Work()).key
    assert key == Stage("work", {"a": 2.5, "b": 1}, Work()).key
    assert key == "5d38cb3be56225530e09"
    assert len({key, Stage("play", {"a": 2.5, "b": 1}, Work()).key, Stage("work", {"a": 2.5, "b": 2}, Work()).key}) == 3
