"""The parts of GAN training that all architectures share: players, what methods add, and the discriminator's input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fewshot_ray.methods.adversarial import AdversarialLoss
from fewshot_ray.methods.augment import Ada, Augmentation
from fewshot_ray.methods.phase import Batch, Objective, Phase, Weighted
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.gan import Gan, Made, View

Player = Literal["D", "G"]
RUNNING = ("running_mean", "running_var")
"""BatchNorm's buffers."""


class Mixup(Protocol):
    """On some steps the discriminator judges images of mixed latents in place of the latents' own images."""

    def active(self, step: int) -> bool:
        """Whether mixtures are judged in `step`, counted from 0."""
        ...

    def mix(self, codes: Tensor, draw: GanDraw, player: Player) -> Tensor:
        """Codes `[b, D]` of the mixtures, one per latent, from the latents' codes `[b, D]`."""
        ...

    def logits(self, view: View, draw: GanDraw) -> Tensor:
        """Logits `[b, P]` of images on these steps."""
        ...


@dataclass(frozen=True)
class GanPart:
    """What a method adds to a GAN's training."""

    discriminator: Callable[[Play], Objective] | None = None
    """Terms of the discriminator's loss, one value per image."""
    generator: Callable[[Play], Objective] | None = None
    """Terms of the generator's loss, one value per image."""
    mixup: Mixup | None = None
    heads: Mapping[str, nn.Module] = field(default_factory=dict)
    """Further networks trained with the discriminator, by name."""
    compares_latents: bool = False
    """Whether the generator's terms compare images with their latents: then styles aren't mixed, so that each image has one latent."""
    held: Sequence[nn.Parameter] = ()
    """The discriminator's parameters that aren't trained."""


class GanDraw:
    """The random numbers of one step: drawn for the global batch, of which a worker takes those of its images."""

    def __init__(self, gan: Gan, batch: Batch, randomness: Randomness) -> None:
        self.gan = gan
        self.batch = batch
        self.step = batch.step
        self.randomness = randomness
        self.signs: Tensor | None = None
        """The sum of the signs of the real images' logits (per image their mean) and the number of images; None before D's loss."""

    def normal(self, purpose: str, *shape: int) -> Tensor:
        """Standard normal numbers `[b, *shape]`."""
        return self.randomness.normal(self.step, purpose, (self.batch.global_size, *shape))[self.batch.positions]

    def uniform(self, purpose: str) -> Tensor:
        """Uniform numbers `[b]` in [0, 1)."""
        return self.randomness.uniform(self.step, purpose, self.batch.global_size)[self.batch.positions]

    def integers(self, purpose: str, high: int) -> Tensor:
        """Uniform integers `[b]` in [0, high), on the host: what is computed depends on them."""
        return self.randomness.host_integers(self.step, purpose, high, self.batch.global_size)[list(self.batch.places)]

    def one_uniform(self, purpose: str) -> float:
        """A number in [0, 1) for the whole step."""
        return self.randomness.host_uniform(self.step, purpose)

    def dirichlet(self, purpose: str, alpha: float, count: int) -> Tensor:
        """Draws `[b, count]` from Dir(alpha, ..., alpha), one per image."""
        return self.randomness.dirichlet(self.step, purpose, alpha, count, self.batch.global_size)[self.batch.positions]

    def noise(self, purpose: str) -> list[Tensor]:
        """A noise image `[b, 1, H, W]` for each of the generator's layers that take one."""
        return [self.normal(f"{purpose}/noise{index}", *shape) for index, shape in enumerate(self.gan.noise_shapes)]


class Play:
    """One player's update in a step: its latents, the images generated from them, and the discriminator's outputs on them.

    In the discriminator's update no gradient reaches the generator. Everything is computed when first used and freed with this object.
    """

    def __init__(self, method: GanMethod, draw: GanDraw, player: Player) -> None:
        self.method = method
        self.gan = method.gan
        self.draw = draw
        self.player = player
        self.mixup = method.mixup if method.mixup is not None and method.mixup.active(draw.step) else None

    @cached_property
    def z(self) -> Tensor:
        """Standard normal latents `[b, latent_dim]`."""
        return self.draw.normal(f"{self.player}/z", self.gan.latent_dim)

    @cached_property
    def codes(self) -> Tensor:
        """The codes of `z`: for StyleGAN2 w, for FastGAN z itself."""
        with torch.set_grad_enabled(self.player == "G"):
            return self.gan.codes(self.z)

    @cached_property
    def fakes(self) -> Made:
        """The images of `z`."""
        with torch.set_grad_enabled(self.player == "G"):
            return self.method.make_fakes(self)

    @cached_property
    def anchors(self) -> Made:
        """The images of the mixtures; only on steps where the mixup is active."""
        assert self.mixup is not None
        with torch.set_grad_enabled(self.player == "G"):
            return self.gan.make(self.mixup.mix(self.codes, self.draw, self.player), self.draw.noise(f"{self.player}/anchors"))

    @cached_property
    def fakes_view(self) -> View:
        """The discriminator's outputs on the latents' own images."""
        return self.seen("fakes", self.fakes)

    @cached_property
    def judged_view(self) -> View:
        """The discriminator's outputs on the images judged in this step: the mixtures where the mixup is active, else `fakes`."""
        return self.fakes_view if self.mixup is None else self.seen("anchors", self.anchors)

    @cached_property
    def real_view(self) -> View:
        """The discriminator's outputs on the real images."""
        return self.gan.view(self.method.augmented(self.draw, f"{self.player}/real", self.draw.batch.x_0))

    def seen(self, name: str, made: Made) -> View:
        """The discriminator's outputs on generated images, which are augmented by their own random numbers."""
        purpose = f"{self.player}/{name}"
        small = None if made.small is None else self.method.augmented(self.draw, f"{purpose}/small", made.small)
        return self.gan.view(self.method.augmented(self.draw, purpose, made.image), small)

    def logits(self, view: View) -> Tensor:
        """Logits `[b, P]`: the discriminator's own, or the mixup's where it is active."""
        return view.logits if self.mixup is None else self.mixup.logits(view, self.draw)

    def term(self, name: str, per_sample: Tensor, weight: float) -> Objective:
        """An objective of one term."""
        return Objective({name: per_sample}, {name: weight})


class Workers(Protocol):
    """The workers that share one training."""

    @property
    def size(self) -> int:
        """Number of workers."""
        ...

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the workers, in place."""
        ...


class Alone:
    """A single worker: sums are its own values."""

    size = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Leaves the tensors as they are."""


class GanMethod(ABC):
    """`L^D = L_adv^D + sum_k lambda_k R_k^D`, `L^G = L_adv^G + sum_k lambda_k R_k^G`; the architectures' recipes add phases and terms."""

    adversarial: AdversarialLoss

    def __init__(self, gan: Gan, parts: Sequence[GanPart], augmentation: Augmentation | None) -> None:
        self.gan = gan
        self.parts = parts
        self.augmentation = augmentation
        self.mixup = next((part.mixup for part in parts if part.mixup is not None), None)
        self.heads = {name: head for part in parts for name, head in part.heads.items()}
        self._optimizers: Mapping[str, Optimizer] = {}
        self.workers: Workers = Alone()

    @abstractmethod
    def make_phases(self) -> Sequence[Phase]:
        """The phases of a step, in their order."""

    @cached_property
    def _phases(self) -> Sequence[Phase]:
        return self.make_phases()

    def phases(self) -> Sequence[Phase]:
        """The phases of a step; built once, since the trained parameters don't change."""
        return self._phases

    def make_fakes(self, play: Play) -> Made:
        """The images of a player's latents, with noise drawn for them."""
        return self.gan.make(play.codes, play.draw.noise(f"{play.player}/fakes"))

    def extra_terms(self, play: Play) -> Objective:
        """Terms that the architecture adds to the discriminator's adversarial loss."""
        return Objective({}, {})

    def augmented(self, draw: GanDraw, purpose: str, images: Tensor) -> Tensor:
        """The images after the augmentation that precedes the discriminator."""
        if self.augmentation is None:
            return images
        return self.augmentation(images, lambda name: draw.uniform(f"{purpose}/{name}"))

    def context(self, batch: Batch, randomness: Randomness) -> GanDraw:
        """The random numbers that the step's phases share."""
        return GanDraw(self.gan, batch, randomness)

    def discriminator_loss(self, draw: GanDraw) -> Objective:
        """The adversarial terms of real and generated images, and what architecture and methods add."""
        play, terms = Play(self, draw, "D"), Weighted()
        real, fake = play.logits(play.real_view), play.logits(play.judged_view)
        signs = real.detach().sign().flatten(1).mean(dim=1)
        draw.signs = torch.stack([signs.sum(), torch.ones_like(signs).sum()])
        terms.add(play.term("real", self.adversarial.real(real, draw.uniform("D/real/margin")), 1.0))
        terms.add(play.term("fake", self.adversarial.fake(fake, draw.uniform("D/fake/margin")), 1.0))
        terms.add(self.extra_terms(play))
        for part in self.parts:
            if part.discriminator is not None:
                terms.add(part.discriminator(play))
        return terms.objective()

    def generator_loss(self, draw: GanDraw) -> Objective:
        """The adversarial term, and what the methods add."""
        play, terms = Play(self, draw, "G"), Weighted()
        terms.add(play.term("generator", self.adversarial.generator(play.logits(play.judged_view)), 1.0))
        for part in self.parts:
            if part.generator is not None:
                terms.add(part.generator(play))
        return terms.objective()

    def use(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Set the optimisers: "D" over `discriminator_parameters()`, "G" over the generator's parameters."""
        self._optimizers = optimizers

    def optimizers(self) -> Mapping[str, Optimizer]:
        """Optimisers "D" (discriminator and heads) and "G"."""
        return self._optimizers

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The generator's parameters."""
        return dict(self.gan.generator.named_parameters())

    def discriminator_parameters(self) -> list[nn.Parameter]:
        """The trained parameters of the discriminator and of the heads."""
        held = {id(parameter) for part in self.parts for parameter in part.held}
        modules = [self.gan.discriminator, *self.heads.values()]
        return [parameter for module in modules for parameter in module.parameters() if id(parameter) not in held]

    def auxiliary(self) -> Mapping[str, nn.Parameter]:
        """The parameters of the discriminator and of the heads."""
        modules = {"discriminator": self.gan.discriminator} | self.heads
        return {f"{name}.{key}": parameter for name, module in modules.items() for key, parameter in module.named_parameters()}

    def modules(self) -> Mapping[str, nn.Module]:
        """Generator, discriminator and heads."""
        return {"generator": self.gan.generator, "discriminator": self.gan.discriminator} | self.heads

    def buffers(self) -> Mapping[str, Tensor]:
        """The running statistics of the networks and the state of ADA."""
        found = {f"{name}.{key}": buffer for name, module in self.modules().items() for key, buffer in module.named_buffers()}
        if isinstance(self.augmentation, Ada):
            found |= {f"ada.{name}": tensor for name, tensor in self.augmentation.state.items()}
        return found

    @property
    def averaged_buffers(self) -> Collection[str]:
        """The generator's running statistics."""
        return [name for name in self.buffers() if name.startswith("generator.") and name.endswith(RUNNING)]

    @property
    def trained_share(self) -> float:
        """1: all of the generator is trained."""
        return 1.0

    @property
    def whole_batch(self) -> bool:
        """True: minibatch statistics and groups of latents compare the images of a batch."""
        return True

    def forget(self, context: GanDraw) -> None:
        """Nothing to free: a draw keeps no graph."""
        return

    def after_step(self, context: GanDraw) -> None:
        """Update ADA from all workers' logits, and average BatchNorm's running statistics over the workers."""
        if isinstance(self.augmentation, Ada) and context.signs is not None:
            self.workers.sum_([context.signs])
            self.augmentation.observe(*context.signs)
            self.augmentation.adjust(context.step, context.batch.global_size)
        if self.workers.size > 1:
            running = [buffer for name, buffer in self.buffers().items() if name.endswith(RUNNING)]
            self.workers.sum_(running)
            for statistic in running:
                statistic /= self.workers.size
