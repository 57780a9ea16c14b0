"""The denoising objective, with at most one noise selector and any number of regularisers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from fewshot_ray.methods.draw import Draw, NoiseSelector, Regularizer, mean_square
from fewshot_ray.methods.phase import Batch, Objective, Phase, Weighted
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.parameters import TunedNetwork


class DiffusionMethod:
    """`L = mean_i mean_CHW (prediction - target)^2 + sum_k lambda_k R_k` (DDPM, Ho et al. 2020, Eq. 14, plus the regularisers).

    With no selector and no regularisers it is plain fine-tuning.
    """

    def __init__(
        self,
        backbone: Backbone,
        tuned: TunedNetwork,
        optimizer: Optimizer,
        *,
        selector: NoiseSelector | None = None,
        regularizers: Sequence[Regularizer] = (),
    ) -> None:
        self.backbone = backbone
        self.tuned = tuned
        self.selector = selector
        self.regularizers = regularizers
        self._optimizer = optimizer

    def context(self, batch: Batch, randomness: Randomness) -> Draw:
        """The draw of a micro-batch."""
        return Draw(self.backbone, self.tuned.network, batch, randomness, self.selector)

    def loss(self, draw: Draw) -> Objective:
        """The denoising term and the regularisers' terms."""
        terms = Weighted()
        terms.add(Objective({"denoising": mean_square(draw.prediction - draw.target)}, {"denoising": 1.0}))
        for regularizer in self.regularizers:
            terms.add(regularizer(draw))
        return terms.objective()

    def phases(self) -> Sequence[Phase]:
        """One phase."""
        return [Phase("denoiser", list(self.tuned.trained.values()), "denoiser", self.loss)]

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser."""
        return {"denoiser": self._optimizer}

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The network's trained parameters."""
        return self.tuned.trained

    def modules(self) -> Mapping[str, nn.Module]:
        """The network."""
        return {"network": self.tuned.network}

    def after_step(self, context: Draw) -> None:
        """Nothing runs."""
