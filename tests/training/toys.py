"""Methods small enough to follow by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewshot_ray.methods.phase import Batch, Objective, Phase
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training

CPU = torch.device("cpu")


class Worker(Group):
    """A worker's place in a group that is not there."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size


class Bare:
    """What a method of parameters alone says of the rest."""

    averaged_buffers: Sequence[str] = ()
    trained_share = 1.0
    whole_batch = False

    def buffers(self) -> Mapping[str, Tensor]:
        return {}


class Toy(Bare):
    """One phase; its parameter is `w` and its loss is given."""

    def __init__(self, start: Sequence[float], loss: Callable[[Tensor, Batch], Objective], optimizer: Callable[..., Any] = torch.optim.SGD):
        self.w = nn.Parameter(torch.tensor(start))
        self._loss = loss
        self._optimizer = optimizer([self.w], lr=1.0)
        self.steps_seen: list[int] = []

    def context(self, batch: Batch, randomness: Randomness) -> Batch:
        return batch

    def phases(self) -> Sequence[Phase]:
        return [Phase("toy", [self.w], "toy", lambda batch: self._loss(self.w, batch))]

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        return {"toy": self._optimizer}

    def trained(self) -> Mapping[str, nn.Parameter]:
        return {"w": self.w}

    def auxiliary(self) -> Mapping[str, nn.Parameter]:
        return {}

    def forget(self, context: Batch) -> None:
        """Nothing is kept."""

    def modules(self) -> Mapping[str, nn.Module]:
        return {}

    def after_step(self, context: Batch) -> None:
        self.steps_seen.append(context.step)


def squares(w: Tensor, batch: Batch) -> Objective:
    """`(w - x)^2` for each image's first pixel x."""
    return Objective({"square": (w.sum() - batch.x_0[:, 0, 0, 0]).square()}, {"square": 1.0})


def grey(*values: int) -> Tensor:
    """Images of one pixel."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)


def training(method: Any, images: Tensor, seed: int = 0, group: Group | None = None, **settings: Any) -> Training:
    config = TrainSpec(**{"batch_size": len(images), "gradient_clip": None, "flip": False, **settings})
    batches = Batches(images, config.batch_size, seed=seed, flip=config.flip, device=CPU)
    return Training(method, batches, config, seed=seed, device=CPU, group=group or Worker())
