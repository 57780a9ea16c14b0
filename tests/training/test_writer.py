"""Checkpoints are written while the training goes on, and nothing of that is lost or mixed up."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import latest_checkpoint, read_checkpoint, saved_steps
from fewshot_ray.training.writer import CheckpointWriter


def last_two(saved: Sequence[int]) -> set[int]:
    return set(saved[-2:])


def test_the_state_of_the_moment_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the values at `submit`, though the tensor changes before the disk has them."""
    held = threading.Event()
    write_bytes = Folder.write_bytes
    monkeypatch.setattr(Folder, "write_bytes", lambda self, name, content: (held.wait(5), write_bytes(self, name, content))[1])
    writer = CheckpointWriter(Folder(tmp_path))
    weight = torch.ones(3)
    writer.submit(5, {"w": weight}, {"note": 1}, last_two)
    weight.fill_(7.0)
    assert latest_checkpoint(Folder(tmp_path)) is None
    held.set()
    writer.close()
    checkpoint = read_checkpoint(Folder(tmp_path), 5)
    assert torch.equal(checkpoint.tensors["w"], torch.ones(3))
    assert checkpoint.info == {"note": 1}


def test_what_is_kept(tmp_path: Path) -> None:
    """Oracle: by hand: the best and the last two."""
    writer = CheckpointWriter(Folder(tmp_path))
    for step in (10, 20, 30, 40, 50):
        writer.submit(step, {"w": torch.ones(1)}, {}, lambda saved: {20} | set(saved[-2:]))
    writer.close()
    assert saved_steps(Folder(tmp_path)) == [20, 40, 50]


def test_what_went_wrong_is_said_by_the_next(tmp_path: Path) -> None:
    """Oracle: the file that stands where the folder should be is named, at the next checkpoint or at the end."""
    (tmp_path / "file").write_text("here first")
    writer = CheckpointWriter(Folder(tmp_path / "file"))
    writer.submit(1, {"w": torch.ones(1)}, {}, last_two)
    with pytest.raises(UserError, match="file"):
        writer.submit(2, {"w": torch.ones(1)}, {}, last_two)
    writer.close()
    assert (tmp_path / "file").read_text() == "here first"


def test_the_copies_are_made_in_the_memory_of_the_one_before(tmp_path: Path) -> None:
    """Oracle: addresses, and what was written: a tensor of another shape gets memory of its own, and nothing of the one before stays."""
    writer = CheckpointWriter(Folder(tmp_path))
    places = []
    for step, size in ((1, 4), (2, 4), (3, 6)):
        writer.submit(step, {"w": torch.full((size,), float(step))}, {}, set)
        writer.wait()
        places.append(writer._copies["w"].data_ptr())
    writer.close()
    assert places[0] == places[1]
    assert read_checkpoint(Folder(tmp_path), 2).tensors["w"].tolist() == [2.0] * 4
    assert read_checkpoint(Folder(tmp_path), 3).tensors["w"].tolist() == [3.0] * 6
