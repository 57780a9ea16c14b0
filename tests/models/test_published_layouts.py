"""Pipelines as the hub has them: older class and attention names than diffusers writes today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshot_ray.models.source import load_backbone
from tests.tiny_pipelines import WRITERS

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rename_attention(path: Path) -> int:
    """As checkpoints from before diffusers 0.13 name attention's projections; how many were renamed."""
    renamed = {}
    for name, tensor in load_file(path).items():
        old = name
        if ".attentions." in name:
            for new, earlier in OLD_NAMES.items():
                old = old.replace(new, earlier)
        renamed[old] = tensor.clone()
    count = len(renamed.keys() - load_file(path).keys())
    save_file(renamed, path, metadata={"format": "pt"})
    return count


@pytest.mark.parametrize(("kind", "components"), [("pixel", ["unet"]), ("ldm-vq", ["vqvae", "unet"]), ("ldm-kl", ["vqvae"])])
def test_old_attention_names(kind: str, components: list[str], tmp_path: Path) -> None:
    """Oracle: the same pipeline under today's names, bit for bit."""
    WRITERS[kind](tmp_path)
    today = load_backbone(str(tmp_path))
    for component in components:
        assert rename_attention(tmp_path / component / "diffusion_pytorch_model.safetensors") >= 8
    old = load_backbone(str(tmp_path))
    pairs = [(today.network, old.network)]
    if today.autoencoder and old.autoencoder:
        pairs.append((today.autoencoder.model, old.autoencoder.model))
    for a, b in pairs:
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_dit_as_it_was_published(tmp_path: Path) -> None:
    """Oracle: facebook/DiT-XL-2-256's configuration: `Transformer2DModel` with keys its successor no longer has, and a name a class."""
    WRITERS["dit"](tmp_path)
    today = load_backbone(str(tmp_path))
    path = tmp_path / "transformer" / "config.json"
    older = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None, "use_linear_projection": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | older))
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"transformer": ["diffusers", "Transformer2DModel"], "id2label": {str(number): f"class {number}" for number in range(1000)}}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    old = load_backbone(str(tmp_path))
    assert (old.class_names[2], len(old.class_names), old.null_label) == ("class 2", 1000, 1000)
    assert (old.shape, old.size, old.channels, old.learned_variance) == ((4, 8, 8), (16, 16), 3, True)
    assert all(torch.equal(x, y) for x, y in zip(today.network.state_dict().values(), old.network.state_dict().values(), strict=True))
