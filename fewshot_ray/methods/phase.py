"""The interface between training loop and methods: the batch, phases and what a loss returns."""

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
    """Each image's index in the global batch, ascending."""
    global_size: int
    """Images in the global batch, over all workers and micro-batches."""
    step: int
    labels: Tensor | None = None
    """`[b]`: each image's class; None for a model without classes."""

    @cached_property
    def positions(self) -> Tensor:
        """`places` as a tensor `[b]` on the images' device; it indexes the global batch's random numbers."""
        return on_device(torch.tensor(list(self.places)), self.x_0.device)

    def among_first(self, count: int) -> int:
        """How many of these images are among the first `count` of the global batch."""
        return sum(place < count for place in self.places)


class Objective(NamedTuple):
    """Unreduced losses per sample. Only the loop reduces them: the sum over all workers divided by the count over all workers."""

    per_sample: Mapping[str, Tensor]
    """Loss values `[n]` by term: one per image of a micro-batch, or one per row of a relation."""
    weight: Mapping[str, float]
    """lambda by term; it multiplies the term's mean."""


LR_FACTOR = "lr_factor"
"""Key of an optimiser's parameter group: factor on `train.lr`, 1 where the key is missing."""


def always(step: int) -> bool:
    """Active in every step."""
    return True


class Relation(Protocol):
    """Terms over pairs of images of the whole global batch, however many workers and micro-batches share it.

    The loop gathers the rows of all workers without a graph, computes the gradient of the terms with respect to them, and passes each
    micro-batch the part for its own rows. So a step is the same as that of one worker with the whole batch.
    """

    def compared(self, images: int) -> int:
        """How many images of a global batch are compared: the first n of them."""
        ...

    def rows(self, context: Any) -> Mapping[str, Tensor]:
        """The terms' inputs from a micro-batch, `[m, ...]` each: one row for each compared image, the first m of the micro-batch."""
        ...

    def terms(self, rows: Mapping[str, Tensor]) -> Objective:
        """The terms from the rows of the global batch, `[M, ...]` each; a term's mean is over its own length."""
        ...


@dataclass(frozen=True)
class Phase:
    """One update within a step: which parameters, by which optimiser, from which loss, and in which steps."""

    name: str
    parameters: Sequence[nn.Parameter]
    optimizer: str
    """Name of one of the method's optimisers; phases may share one."""
    loss: Callable[[Any], Objective]
    """Computes, from the step's context, the terms that depend on one image each."""
    relations: Sequence[Relation] = ()
    """Terms that compare images of the global batch."""
    active: Callable[[int], bool] = always
    gradient_scale: float = 1.0
    """Factor on the gradient; -1 for gradient ascent."""
    gradient_clip: float | None = None
    """Largest norm of the gradient; None takes `train.gradient_clip`."""


class Method(Protocol):
    """A training method as the loop sees it: its phases, and the state that a checkpoint holds."""

    def context(self, batch: Batch, randomness: Randomness) -> Any:
        """The values that the phases of one step share, computed once, with their graph."""
        ...

    def phases(self) -> Sequence[Phase]:
        """The phases, in the order they run within a step."""
        ...

    def optimizers(self) -> Mapping[str, Optimizer]:
        """The optimisers by name; phases refer to them."""
        ...

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the result, under stable names: averaged by the EMA, exported."""
        ...

    def auxiliary(self) -> Mapping[str, nn.Parameter]:
        """Parameters needed only for training (an adversary's), under other stable names: in checkpoints, not in the result."""
        ...

    def buffers(self) -> Mapping[str, Tensor]:
        """Tensors that training changes in place besides parameters (running statistics), under stable names: saved in checkpoints."""
        ...

    @property
    def averaged_buffers(self) -> Collection[str]:
        """Names of the result's buffers, which the EMA averages like its parameters."""
        ...

    @property
    def trained_share(self) -> float:
        """Trained parameters of the result over all its parameters, in (0, 1]."""
        ...

    @property
    def whole_batch(self) -> bool:
        """Whether a worker's images must pass through the networks together, since these compare the images of a batch."""
        ...

    def modules(self) -> Mapping[str, nn.Module]:
        """The networks to put into training mode."""
        ...

    def forget(self, context: Any) -> None:
        """Free the networks' outputs and graph of a context; its random numbers stay."""
        ...

    def after_step(self, context: Any) -> None:
        """Update running statistics after the optimisers' steps."""
        ...


@dataclass
class Weighted:
    """Collects terms into one objective."""

    per_sample: dict[str, Tensor] = field(default_factory=dict)
    weight: dict[str, float] = field(default_factory=dict)

    def add(self, objective: Objective) -> None:
        """Add another objective's terms. Raises ValueError for a name that is already there."""
        taken = self.per_sample.keys() & objective.per_sample.keys()
        if taken:
            raise ValueError(f"two loss terms are called {sorted(taken)[0]}")
        self.per_sample.update(objective.per_sample)
        self.weight.update(objective.weight)

    def objective(self) -> Objective:
        """The objective with all terms added so far."""
        return Objective(self.per_sample, self.weight)
