"""The images of each step: repeated, shuffled passes over the few training images."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_ray.data.images import to_model_range
from fewshot_ray.methods.phase import Batch
from fewshot_ray.methods.randomness import derived_seed, on_device
from fewshot_ray.models.autoencoder import Autoencoder, encode_all
from fewshot_ray.training.group import Group


class Batches:
    """Batches as a function of (seed, step) alone: nothing is saved, and resuming at any step is exact.

    `images` is uint8 `[N, C, H, W]`; a step continues the pass where the last one ended, so a batch may be larger than N.
    `autoencoder` encodes them once, flipped and not; latents are drawn from its posterior at every step.
    `labels` is `[N]`, for a model with classes.
    """

    def __init__(
        self,
        images: Tensor,
        batch_size: int,
        *,
        seed: int,
        flip: bool,
        device: torch.device | str,
        autoencoder: Autoencoder | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.flip = flip
        upright = to_model_range(images).to(device)
        self.upright = encode_all(autoencoder, upright)
        self.mirrored = encode_all(autoencoder, upright.flip(-1)) if flip and autoencoder else None
        self.labels = None if labels is None else labels.to(device)

    def __len__(self) -> int:
        """Number of training images."""
        return len(self.upright.mean)

    def indices(self, step: int) -> Tensor:
        """Indices of the images of the global batch, `[batch_size]`."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size
        passes = range(first // len(self), (last - 1) // len(self) + 1)
        order = torch.cat([self._pass(number) for number in passes])
        offset = first - passes.start * len(self)
        return order[offset : offset + self.batch_size]

    def micro_batches(self, step: int, group: Group, micro_batch: int) -> list[Batch]:
        """This worker's part of the step's global batch, in micro-batches of at most `micro_batch` images.

        Empty for a worker without images in the batch: networks refuse empty input.
        """
        device = self.upright.mean.device
        indices = self.indices(step)
        flips = torch.rand(self.batch_size, generator=self._generator("flip", step)) < (0.5 if self.flip else 0)
        own = range(self.batch_size)[group.rank :: group.size]
        parts = []
        for first in range(0, len(own), micro_batch):
            places = own[first : first + micro_batch]
            positions = torch.tensor(list(places))
            chosen = on_device(indices[positions], device)
            x_0 = self._x_0(chosen, on_device(flips[positions], device), positions, step)
            labels = None if self.labels is None else self.labels[chosen]
            parts.append(Batch(x_0, places, self.batch_size, step, labels))
        return parts

    def _x_0(self, chosen: Tensor, flipped: Tensor, positions: Tensor, step: int) -> Tensor:
        mean, flipped = self.upright.mean[chosen], flipped.view(-1, 1, 1, 1)
        if self.mirrored is None:
            mean = torch.where(flipped, mean.flip(-1), mean) if self.flip else mean
        else:
            mean = torch.where(flipped, self.mirrored.mean[chosen], mean)
        if self.upright.std is None:
            return mean
        std = self.upright.std[chosen]
        if self.mirrored is not None and self.mirrored.std is not None:
            std = torch.where(flipped, self.mirrored.std[chosen], std)
        noise = torch.randn((self.batch_size, *mean.shape[1:]), generator=self._generator("posterior", step))
        return mean + std * on_device(noise[positions], mean.device)

    def _pass(self, number: int) -> Tensor:
        return torch.randperm(len(self), generator=self._generator("pass", number))

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, purpose, number))
