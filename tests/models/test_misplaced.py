"""What isn't a pipeline is called what it is, with what to do; oracle: what was put there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fewshot_ray.errors import UserError
from fewshot_ray.models.source import load_backbone


def refused(place: object) -> str:
    with pytest.raises(UserError) as error:
        load_backbone(str(place))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_files_of_weights(tmp_path: Path) -> None:
    save_file({"conv_in.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    save_file({"unet.attn.to_q.lora_A.weight": torch.zeros(2)}, tmp_path / "style.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "old.ckpt").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("words")
    for name in ("model.safetensors", "broken.safetensors", "old.ckpt"):
        assert "is a single file of weights" in refused(tmp_path / name)
        assert "save_pretrained writes" in refused(tmp_path / name)
    assert "is a LoRA, which changes a pipeline and is none" in refused(tmp_path / "style.safetensors")
    assert "fuse_lora" in refused(tmp_path / "style.safetensors")
    assert "notes.txt is a file; the folder of a diffusers pipeline would be right" in refused(tmp_path / "notes.txt")
    assert "is a single file of weights" in refused("s3://bucket/model.safetensors")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "adapter_config.json"])
def test_a_folder_with_a_lora(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    assert f"{tmp_path} is a LoRA" in refused(tmp_path)


def test_a_sweeps_folder_and_a_trials(tmp_path: Path) -> None:
    trial = tmp_path / "mine" / "trials" / "t0003"
    trial.mkdir(parents=True)
    for folder in (trial, tmp_path / "mine"):
        (folder / "spec.yaml").write_text("")
    (trial / "trial.json").write_text(json.dumps({}))
    assert f"is a sweep's folder; `fewshot-ray export {tmp_path}/mine OUT` writes its result" in refused(tmp_path / "mine")
    assert f"is a trial of a sweep; `fewshot-ray export {tmp_path}/mine OUT --trial t0003`" in refused(trial)
