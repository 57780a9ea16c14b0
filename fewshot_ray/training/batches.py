"""Which images a step sees: shuffled passes over the few there are, repeated."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_ray.data.images import to_model_range
from fewshot_ray.methods.phase import Batch
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.training.group import Group


class Batches:
    """Batches as a function of (seed, step) alone: nothing to save, and resuming at any step is exact.

    `images` is uint8 `[N, C, H, W]`; the passes over them run on through step after step, so a batch may be larger than N.
    """

    def __init__(self, images: Tensor, batch_size: int, *, seed: int, flip: bool, device: torch.device | str) -> None:
        self.images = to_model_range(images).to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip

    def indices(self, step: int) -> Tensor:
        """The images of the global batch, `[batch_size]`."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        passes = range(first // len(self.images), (last - 1) // len(self.images) + 1)
        order = torch.cat([self._pass(number) for number in passes])
        offset = first - passes.start * len(self.images)
        return order[offset : offset + self.batch_size]

    def micro_batches(self, step: int, group: Group, micro_batch: int) -> list[Batch]:
        """This worker's part of the step's global batch, in micro-batches of at most `micro_batch` images.

        None where there are more workers than images in the batch: networks refuse empty input.
        """
        device = self.images.device
        indices = self.indices(step)
        flips = torch.rand(self.batch_size, generator=self._generator("flip", step)) < 0.5
        parts = []
        own = group.own(torch.arange(self.batch_size))
        for positions in own.split(micro_batch) if len(own) > 0 else ():
            x_0 = self.images[indices[positions].to(device)]
            if self.flip:
                x_0 = torch.where(flips[positions].to(device).view(-1, 1, 1, 1), x_0.flip(-1), x_0)
            parts.append(Batch(x_0, positions.to(device), self.batch_size, step))
        return parts

    def _pass(self, number: int) -> Tensor:
        return torch.randperm(len(self.images), generator=self._generator("pass", number))

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose, number))
