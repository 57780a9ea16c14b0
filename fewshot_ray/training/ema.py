"""The exponential moving average of the trained parameters: what is evaluated, kept and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor, nn


class Ema:
    """diffusers' `EMAModel` over the trained parameters, by name.

    `average <- d average + (1 - d) parameter` after every step; with the warm-up d = min(decay, (1 + n) / (10 + n)) at the n-th
    update, without it d = decay: 97 % of the source would be left in it after 300 steps at decay .9999.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, decay: float, warmup: bool, buffers: Mapping[str, Tensor] | None = None
    ) -> None:
        self.parameters = parameters
        self.buffers = buffers or {}
        """Running statistics, averaged like the parameters, for use with the averaged weights."""
        self._averages = {name: buffer.clone() for name, buffer in self.buffers.items()}
        # By default diffusers starts from the parameters *after* the first step, whatever the decay; -1 counts that step as any other.
        self._model = EMAModel(parameters.values(), decay=decay, min_decay=0.0 if warmup else decay, update_after_step=-1, foreach=True)

    @property
    def updates(self) -> int:
        """Number of updates of the average."""
        return int(self._model.optimization_step)

    def update(self) -> None:
        """Update the average with the current parameters. Where memory runs out in it, nothing has changed."""
        before = self._model.optimization_step
        try:
            self._model.step(self.parameters.values())  # allocates the differences before it changes anything
        except RuntimeError:
            self._model.optimization_step = before
            raise
        for name, buffer in self.buffers.items():
            self._averages[name].lerp_(buffer, 1 - self._model.cur_decay_value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the network computes with the averages."""
        self._model.store(self.parameters.values())
        self._model.copy_to(self.parameters.values())
        now = {name: buffer.clone() for name, buffer in self.buffers.items()}
        for name, buffer in self.buffers.items():
            buffer.copy_(self._averages[name])
        try:
            yield
        finally:
            self._model.restore(self.parameters.values())
            for name, buffer in self.buffers.items():
                buffer.copy_(now[name])

    def state(self) -> dict[str, Tensor]:
        """The averages by the parameters' and buffers' names."""
        return {**dict(zip(self.parameters, self._model.shadow_params, strict=True)), **self._averages}

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Restore a saved state."""
        for name, average in self.state().items():
            average.copy_(state[name])
        self._model.optimization_step = updates
