"""Weight files that are damaged, of another kind, or not there."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_extractor, load_perceptual
from fewshot_ray.models.weights import read_weights


class Harmful:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_bad_weight_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the message names the file; a pickle that would run code runs none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save({"features.0.weight": Harmful()}, tmp_path / "harmful.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "folder.pth").mkdir()
    names = [
        "text.pth",
        "empty.pth",
        "text.safetensors",
        "harmful.pth",
        "list.pth",
        "other.pth",
        "other.safetensors",
        "folder.pth",
        "none.pth",
    ]
    for name in names:
        with pytest.raises(UserError, match=name) as refusal:
            load_extractor("inception", device="cpu", weights=str(tmp_path / name))
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "harm").exists()
    for name in ("other.pth", "none.pth"):
        with pytest.raises(UserError, match=name):
            load_perceptual(device="cpu", weights=str(tmp_path / name))


def test_damaged_weight_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Oracle: 300 files with random bytes changed or cut off are read or refused by UserError."""
    draw = random.Random(0)
    torch.save({"a": torch.zeros(3)}, tmp_path / "zip.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(3)}, tmp_path / "whole.safetensors")
    refused = 0
    for name in ("zip.pth", "legacy.pth", "whole.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            place = tmp_path / f"damaged-{name}"
            place.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
            try:
                read_weights(str(place))
            except UserError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["folder.pth", "pipe.pth"])
def test_what_is_no_ordinary_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match=r"^[^\n]*these weights cannot be read"):
        read_weights(str(tmp_path / name))
