"""What methods are made of, at toy size."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.data.images import from_model_range
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.draw import frozen
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.storage import Folder
from tests.tiny_diffusion import images, tiny_backbone

DIFFUSION_METHODS = {name: method for name, method in METHODS.items() if "diffusion" in method.families}


@dataclass
class ToyIngredients:
    """Dark source images, bright target images, and a folder that stages are kept in."""

    cache: Folder
    backbone: Backbone = field(default_factory=tiny_backbone)
    seed: int = 0
    target_hash: str = "target"
    asked: list[str] = field(default_factory=list)
    """What the method asked for."""

    def source_network(self) -> nn.Module:
        self.asked.append("source_network")
        return frozen(copy.deepcopy(self.backbone.network))

    def source_hash(self) -> str:
        return "weights"

    def source_images(self) -> tuple[Tensor, str]:
        self.asked.append("source_images")
        return from_model_range(images(12, 1) * 0.5 - 0.5), "source"

    def training_images(self) -> tuple[Tensor, str]:
        self.asked.append("training_images")
        return from_model_range(images(6, 2) * 0.5 + 0.5), self.target_hash

    def read(self, stage: Stage) -> dict[str, Tensor]:
        return read(stage, self.cache)


@pytest.fixture(scope="session")
def ingredients(tmp_path_factory: pytest.TempPathFactory) -> ToyIngredients:
    """One cache for the whole run: a stage is trained once."""
    torch.set_num_threads(1)
    return ToyIngredients(Folder(tmp_path_factory.mktemp("cache")))
