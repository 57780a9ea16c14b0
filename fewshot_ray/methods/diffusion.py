"""The denoising objective, with at most one noise selector and any number of regularisers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from fewshot_ray.methods.draw import Draw, mean_square
from fewshot_ray.methods.phase import Batch, Objective, Phase, Weighted
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.registry import Adversary, Part
from fewshot_ray.methods.vlb import variational_bound
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.parameters import TunedNetwork


class DiffusionMethod:
    """`L = mean_i mean_CHW (prediction - target)^2 + sum_k lambda_k R_k` (DDPM, Ho et al. 2020, Eq. 14, plus the regularisers).

    Where the variance is learned, `L_vlb` is added (Nichol & Dhariwal 2021, Eq. 16; in bits, with the weight 1 of the authors' code).
    With no parts it is plain fine-tuning.
    """

    def __init__(
        self, backbone: Backbone, tuned: TunedNetwork, optimizer: Optimizer, parts: Sequence[Part] = (), *, label_dropout: float = 0.0
    ) -> None:
        self.backbone = backbone
        self.tuned = tuned
        self.label_dropout = label_dropout
        self.selector = next((part.selector for part in parts if part.selector), None)
        self.regularizers = [part.regularizer for part in parts if part.regularizer]
        self.adversaries: Mapping[str, Adversary] = {a.name: a for part in parts for a in part.adversaries}
        self.one_timestep = any(part.one_timestep for part in parts)
        relations = [part.relation for part in parts if part.relation]
        denoiser = Phase("denoiser", list(tuned.trained.values()), "denoiser", self.loss, relations=relations)
        self._phases = [*(adversary.phase for adversary in self.adversaries.values()), denoiser]
        self._optimizers = {"denoiser": optimizer} | {name: adversary.optimizer for name, adversary in self.adversaries.items()}

    def context(self, batch: Batch, randomness: Randomness) -> Draw:
        """The draw of a micro-batch: noise, timesteps, x_t and the network's output, shared by the step's phases."""
        return Draw(
            self.backbone,
            self.tuned.network,
            batch,
            randomness,
            self.selector,
            one_timestep=self.one_timestep,
            label_dropout=self.label_dropout,
        )

    def loss(self, draw: Draw) -> Objective:
        """The denoising terms and those of the regularisers."""
        terms = Weighted()
        terms.add(Objective({"denoising": mean_square(draw.prediction - draw.target)}, {"denoising": 1.0}))
        if self.backbone.learned_variance:
            terms.add(Objective({"vlb": variational_bound(draw)}, {"vlb": 1.0}))
        for regularizer in self.regularizers:
            terms.add(regularizer(draw))
        return terms.objective()

    def phases(self) -> Sequence[Phase]:
        """The adversaries' phases, then the denoiser's."""
        return self._phases

    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser per phase."""
        return self._optimizers

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The network's trained parameters."""
        return self.tuned.trained

    def auxiliary(self) -> Mapping[str, nn.Parameter]:
        """The adversaries' parameters."""
        return {
            f"{name}.{key}": parameter
            for name, adversary in self.adversaries.items()
            for key, parameter in adversary.network.named_parameters()
            if parameter.requires_grad
        }

    def buffers(self) -> Mapping[str, Tensor]:
        """None: the denoiser has no running statistics, and an adversary's are never updated."""
        return {}

    @property
    def averaged_buffers(self) -> Collection[str]:
        """None: there are no running statistics."""
        return ()

    @property
    def trained_share(self) -> float:
        """Trained parameters over all parameters of the network, in (0, 1]."""
        return self.tuned.share

    @property
    def whole_batch(self) -> bool:
        """False: only relations compare images, and the training loop gathers their rows."""
        return False

    def modules(self) -> Mapping[str, nn.Module]:
        """The denoising network and the adversaries' networks."""
        return {"network": self.tuned.network} | {name: adversary.network for name, adversary in self.adversaries.items()}

    def forget(self, context: Draw) -> None:
        """Free the network's output and its graph."""
        context.forget()

    def after_step(self, context: Draw) -> None:
        """Nothing to update: there are no running statistics."""
