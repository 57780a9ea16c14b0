"""The draw: noise and timesteps of one micro-batch, and everything computed from them, each computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fewshot_ray.methods.phase import Batch, Objective
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.backbone import Backbone, Output


class SelectedNoise(NamedTuple):
    """The result of a noise selector."""

    eps: Tensor
    """`[b, C, H, W]`, used in place of the drawn noise."""
    target_shift: Tensor | None
    """`[b, C, H, W]`, added to eps as the regression target; None for no shift."""


class NoiseSelector(Protocol):
    """Chooses the noise the network is trained on (ANT)."""

    def __call__(self, x_0: Tensor, t: Tensor, eps: Tensor, predict_eps: Callable[[Tensor, Tensor], Tensor]) -> SelectedNoise:
        """x_0, eps `[b, C, H, W]`, t `[b]`; `predict_eps(x_t, t)` is the student, differentiable in x_t."""
        ...


class Regularizer(Protocol):
    """Adds terms to the denoising loss of a draw."""

    def __call__(self, draw: Draw) -> Objective:
        """The terms, one value per sample."""
        ...


class Draw:
    """`x_0, labels, t, eps, x_t, prediction, target, x_0_hat` of one micro-batch; the network runs once, when its output is first used.

    `one_timestep` gives the images of a global batch the same t. `label_dropout` is the share of labels replaced by the null
    class (classifier-free guidance, Ho & Salimans 2021).
    """

    def __init__(
        self,
        backbone: Backbone,
        network: nn.Module,
        batch: Batch,
        randomness: Randomness,
        selector: NoiseSelector | None,
        *,
        one_timestep: bool = False,
        label_dropout: float = 0.0,
    ) -> None:
        self.backbone = backbone
        self.network = network
        self.batch = batch
        self.randomness = randomness
        self.x_0 = batch.x_0
        self._training_images: dict[int, Tensor] = {}
        t = randomness.integers(batch.step, "t", backbone.schedule.timesteps, batch.global_size)
        self.t = (t[:1].expand_as(t) if one_timestep else t)[batch.positions]
        self.labels = batch.labels if batch.labels is None else self._dropped(batch.labels, label_dropout)
        drawn = self.normal("eps")
        chosen = selector(self.x_0, self.t, drawn, self.predict_eps) if selector else SelectedNoise(drawn, None)
        self.eps, self._target_shift = chosen

    def _dropped(self, labels: Tensor, share: float) -> Tensor:
        assert self.backbone.null_label is not None
        uniform = self.randomness.uniform(self.batch.step, "label-dropout", self.batch.global_size)[self.batch.positions]
        return torch.where(uniform < share, self.backbone.null_label, labels)

    def normal(self, purpose: str) -> Tensor:
        """Standard normal noise `[b, C, H, W]`, the same for any number of workers."""
        shape = (self.batch.global_size, *self.x_0.shape[1:])
        return self.randomness.normal(self.batch.step, purpose, shape)[self.batch.positions]

    def predict_by(self, network: nn.Module, x_t: Tensor) -> Tensor:
        """The prediction of `network` (the student or a teacher) at another x_t, the draw's t and labels, by a separate forward pass."""
        return self.backbone.predict(network, x_t, self.t, self.labels)

    def predict_eps(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The student's noise estimate at another x_t, by a separate forward pass; gradients reach x_t and no weight."""
        with weights_held(self.network):
            return self.backbone.to_eps(self.backbone.predict(self.network, x_t, t, self.labels), x_t, t)

    def training_images(self, count: int) -> Tensor:
        """The first `count` of x_0 as images `[count, C, H, W]` in [-1, 1], decoded once."""
        if count not in self._training_images:
            with torch.no_grad():
                # networks refuse empty input
                self._training_images[count] = self.backbone.decode(self.x_0[: max(count, 1)])[:count]
        return self._training_images[count]

    def forget(self) -> None:
        """Free the network's output and its graph; noise, timesteps and x_t stay."""
        for name in ("output", "x_0_hat"):
            self.__dict__.pop(name, None)

    @cached_property
    def x_t(self) -> Tensor:
        """`sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`."""
        return self.backbone.schedule.add_noise(self.x_0, self.eps, self.t)

    @cached_property
    def output(self) -> Output:
        """The student's output at x_t."""
        return self.backbone.output(self.network, self.x_t, self.t, self.labels)

    @property
    def prediction(self) -> Tensor:
        """The student's prediction at x_t in the backbone's native space."""
        return self.output.prediction

    @cached_property
    def target(self) -> Tensor:
        """The regression target of `prediction`, in the backbone's native space."""
        target = self.backbone.target(self.x_0, self.eps, self.t)
        if self._target_shift is None:
            return target
        return target + self.backbone.target_slope(self.t) * self._target_shift

    @cached_property
    def x_0_hat(self) -> Tensor:
        """The estimate of x_0 (an image, or a latent) that follows from the student's prediction; not clamped."""
        return self.backbone.to_x_0(self.prediction, self.x_t, self.t)


@contextmanager
def weights_held(network: nn.Module) -> Iterator[None]:
    """Within the block no weight requires a gradient, which saves memory, and time in compiled backward passes."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_()


def mean_square(difference: Tensor) -> Tensor:
    """The mean of squares over C, H, W, `[b, C, H, W]` to `[b]`: the reduction of every denoising-like term."""
    return difference.float().square().mean(dim=(1, 2, 3))


def frozen(network: nn.Module) -> nn.Module:
    """`network` in eval mode, no gradients: a teacher or a classifier."""
    return network.eval().requires_grad_(False)
