"""What the training loop knows of a method: phases, what a loss returns, and the batch it is given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fewshot_ray.methods.randomness import Randomness, on_device


@dataclass(frozen=True)
class Batch:
    """One worker's part of one micro-batch."""

    x_0: Tensor
    """`[b, C, H, W]`: images in [-1, 1], or their latents."""
    places: Sequence[int]
    """Where each image stands in the global batch, ascending."""
    global_size: int
    """Images in the global batch, over all workers and micro-batches."""
    step: int
    labels: Tensor | None = None
    """`[b]`: each image's class; None for a model without classes."""

    @cached_property
    def positions(self) -> Tensor:
        """`places` as `[b]` on the images' device: picks their random numbers."""
        return on_device(torch.tensor(list(self.places)), self.x_0.device)

    def among_first(self, count: int) -> int:
        """How many of these images are among the first `count` of the global batch."""
        return sum(place < count for place in self.places)


class Objective(NamedTuple):
    """Losses a sample, unreduced: the loop alone reduces, to the sum over all workers over the count over all workers."""

    per_sample: Mapping[str, Tensor]
    """Term to `[n]`: of a micro-batch, a loss an image; of a relation, a loss for each of its rows."""
    weight: Mapping[str, float]
    """Term to its lambda, which multiplies the term's mean."""


LR_FACTOR = "lr_factor"
"""Key of an optimiser's parameter group: its learning rate over `train.lr`; 1 where it isn't there."""


def always(step: int) -> bool:
    """A phase of every step."""
    return True


class Relation(Protocol):
    """Terms over pairs of images of the whole global batch, however many workers and micro-batches share it.

    The loop gathers everybody's rows without a graph, takes the terms' gradient in them, and hands each micro-batch its rows' part
    of it: so the step is that of one worker with the whole batch at once.
    """

    def compared(self, images: int) -> int:
        """How many of a global batch's images have rows: so many of the first."""
        ...

    def rows(self, context: Any) -> Mapping[str, Tensor]:
        """What the terms need of a micro-batch, `[m, ...]` each: a row for each of its images that are compared, its first m."""
        ...

    def terms(self, rows: Mapping[str, Tensor]) -> Objective:
        """Of the rows of the global batch, `[M, ...]` each; the terms' means are over their own length."""
        ...


@dataclass(frozen=True)
class Phase:
    """What is updated in a step, by which optimiser, from which loss, and when."""

    name: str
    parameters: Sequence[nn.Parameter]
    optimizer: str
    """One of the method's optimisers, by name: phases may share one."""
    loss: Callable[[Any], Objective]
    """From the step's context: terms that an image has by itself."""
    relations: Sequence[Relation] = ()
    """Terms over the images of the global batch together."""
    active: Callable[[int], bool] = always
    gradient_scale: float = 1.0
    """-1 ascends."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None takes `train.gradient_clip`."""


class Method(Protocol):
    """A way to train: phases over contexts, and the state that a checkpoint holds."""

    def context(self, batch: Batch, randomness: Randomness) -> Any:
        """What the phases of one step share, built once with its graph."""
        ...

    def phases(self) -> Sequence[Phase]:
        """In the order they run within a step."""
        ...

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Owned by the method, shared by phases."""
        ...

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the result, under stable names: averaged by the EMA, exported."""
        ...

    def auxiliary(self) -> Mapping[str, nn.Parameter]:
        """What is trained for the training's sake (an adversary), under other stable names: in checkpoints, not in the result."""
        ...

    def buffers(self) -> Mapping[str, Tensor]:
        """What training changes in place besides parameters (running statistics), under stable names: in checkpoints."""
        ...

    @property
    def averaged_buffers(self) -> Collection[str]:
        """Those of the result, which the EMA averages with the parameters."""
        ...

    @property
    def trained_share(self) -> float:
        """Parameters trained of the result over all it has, in (0, 1]."""
        ...

    @property
    def whole_batch(self) -> bool:
        """Whether a worker's images must pass together: networks that compare the images of a batch."""
        ...

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks put into training mode."""
        ...

    def forget(self, context: Any) -> None:
        """Let go of what networks computed for a context, with its graph; what was drawn stays."""
        ...

    def after_step(self, context: Any) -> None:
        """Running statistics."""
        ...


@dataclass
class Weighted:
    """Collects the terms of an objective."""

    per_sample: dict[str, Tensor] = field(default_factory=dict)
    weight: dict[str, float] = field(default_factory=dict)

    def add(self, objective: Objective) -> None:
        """Take in another objective's terms; a name taken twice raises ValueError."""
        taken = self.per_sample.keys() & objective.per_sample.keys()
        if taken:
            raise ValueError(f"two loss terms are called {sorted(taken)[0]}")
        self.per_sample.update(objective.per_sample)
        self.weight.update(objective.weight)

    def objective(self) -> Objective:
        """The sum of all that was added."""
        return Objective(self.per_sample, self.weight)
