"""Runs' files for the smallest networks on the embedded digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import TrialSpec, compose, expand
from fewshot_ray.trial.trial import Trial

CPU = torch.device("cpu")
UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
}
ANT = {"noise_steps": 1, "guidance": 1.0, "classifier_steps": 2, "classifier_batch": 4, "noise_norm": "moments"}


def document(**sections: Any) -> Document:
    """A file whose sections are updated key by key; `method` is replaced."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "source": {"build": UNET, "images": "embedded://digits/shots?seed=5"},
        "target": {"images": "embedded://digits/shots", "shots": 4, "holdout": 2},
        "method": {"finetune": {}},
        "train": {"steps": 4, "batch_size": 4, "lr": 1e-3},
        "evaluate": {"every": 2, "samples": 4, "sampler_steps": 2, "grid_images": 4, "loss_draws": 8},
    }
    for name, section in sections.items():
        merge = isinstance(section, dict) and isinstance(tree.get(name), dict) and name != "method"
        tree[name] = {**tree[name], **section} if merge else section
    return Document(tree, "tiny.yaml")


def spec(*, seed: int | None = None, refit_steps: int | None = None, **sections: Any) -> TrialSpec:
    return compose(expand(document(**sections)), seed=seed, refit_steps=refit_steps)


def trial(place: Path | Folder, *, seed: int | None = None, refit_steps: int | None = None, **sections: Any) -> Trial:
    """A trial whose results and cache are below `place`."""
    folder = place if isinstance(place, Folder) else Folder(place)
    return Trial(spec(seed=seed, refit_steps=refit_steps, **sections), folder / "trial", folder / "cache", device=CPU)


def as_eager(folder: Path) -> None:
    """Assert that a trial with `train.compile` has the losses of one without, to 1e-4."""
    evaluate = {"every": 4, "samples": 0, "grid_images": 0, "loss_draws": 4, "metrics": ["holdout_loss"]}
    eager = list(trial(folder / "eager", evaluate=evaluate).evaluations())
    compiled = list(trial(folder / "compiled", train={"compile": True}, evaluate=evaluate).evaluations())
    assert [one.step for one in compiled] == [one.step for one in eager] == [4]
    for one, other in zip(compiled, eager, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
