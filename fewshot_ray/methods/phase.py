"""What the training loop knows of a method: phases, what a loss returns, and the batch it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from fewshot_ray.methods.randomness import Randomness


@dataclass(frozen=True)
class Batch:
    """One worker's part of one micro-batch."""

    x_0: Tensor
    """`[b, C, H, W]` in [-1, 1]."""
    positions: Tensor
    """`[b]`: where each image stands in the global batch; picks its random numbers."""
    global_size: int
    """Images in the global batch, over all workers and micro-batches."""
    step: int


class Objective(NamedTuple):
    """Losses a sample, unreduced: the loop alone reduces, to the sum over all workers over the count over all workers."""

    per_sample: Mapping[str, Tensor]
    """Term to `[n]`; n may differ from term to term."""
    weight: Mapping[str, float]
    """Term to its lambda, which multiplies the term's mean."""
    global_count: Mapping[str, int] = {}
    """Term to its samples in the whole global batch, where that isn't the batch's size."""


def always(step: int) -> bool:
    """A phase of every step."""
    return True


@dataclass(frozen=True)
class Phase:
    """What is updated in a step, by which optimiser, from which loss, and when."""

    name: str
    parameters: Sequence[nn.Parameter]
    optimizer: str
    """One of the method's optimisers, by name: phases may share one."""
    loss: Callable[[Any], Objective]
    """From the step's context."""
    active: Callable[[int], bool] = always
    gradient_scale: float = 1.0


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
        """Every parameter a checkpoint holds, under a stable name; the EMA follows these."""
        ...

    def modules(self) -> Mapping[str, nn.Module]:
        """Networks put into training mode."""
        ...

    def after_step(self, context: Any) -> None:
        """Running statistics."""
        ...


@dataclass
class Weighted:
    """Collects the terms of an objective."""

    per_sample: dict[str, Tensor] = field(default_factory=dict)
    weight: dict[str, float] = field(default_factory=dict)
    global_count: dict[str, int] = field(default_factory=dict)

    def add(self, objective: Objective) -> None:
        """Take in another objective's terms; a name taken twice raises ValueError."""
        taken = self.per_sample.keys() & objective.per_sample.keys()
        if taken:
            raise ValueError(f"two loss terms are called {sorted(taken)[0]}")
        self.per_sample.update(objective.per_sample)
        self.weight.update(objective.weight)
        self.global_count.update(objective.global_count)

    def objective(self) -> Objective:
        """The sum of all that was added."""
        return Objective(self.per_sample, self.weight, self.global_count)
