"""The methods by name, each with its typed configuration and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from fewshot_ray.methods.draw import NoiseSelector, Regularizer
from fewshot_ray.methods.phase import Phase, Relation
from fewshot_ray.methods.stage import Stage
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.spec.ranges import Range

if TYPE_CHECKING:
    from fewshot_ray.methods.gan import GanPart
    from fewshot_ray.models.gan import Gan


class MethodConfig(BaseModel):
    """A method's settings: a field's default is the paper's preset, its range is declared with its type.

    `guidance: Annotated[float, Field(ge=0), FloatRange(0, 10)] = 5.0`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    cheap_stages: ClassVar[Mapping[str, Any]] = {}
    """Values that make the stages quick and leave a training step as dear as it is: for timing a few steps."""

    least_batch: ClassVar[int] = 1
    """Images that a global batch needs."""

    needs_source: ClassVar[bool] = False
    """Whether it keeps something of a trained source model."""

    @classmethod
    def misfit(cls, given: Mapping[str, Any]) -> tuple[str, str] | None:
        """A field among the settings as the file gives them (ranges unexpanded) that the others make pointless, and what is right."""
        return None

    def check(self, backbone: Backbone) -> None:
        """Raise UserError where the method can't work on the backbone with these settings, or something it needs can't be had."""

    @property
    def group_size(self) -> int:
        """Images of a batch that are compared with each other, on one worker; batches are whole groups."""
        return 1

    @property
    def prepares(self) -> bool:
        """Whether these settings have stages to build before trials start."""
        return False


def declared_ranges(config: type[BaseModel]) -> dict[str, Range]:
    """The ranges declared beside the fields: what `method: {name: search}` searches."""
    return {name: item for name, field in config.model_fields.items() for item in field.metadata if isinstance(item, Range)}


class Ingredients(Protocol):
    """What a method may ask for when it is made; each is loaded when first asked for."""

    @property
    def backbone(self) -> Backbone:
        """The student's backbone."""
        ...

    @property
    def seed(self) -> int:
        """For stages; the same in all trials of a sweep."""
        ...

    def source_network(self) -> nn.Module:
        """A frozen copy of the source network, in eval mode, on the student's device."""
        ...

    def source_images(self) -> tuple[Tensor, str]:
        """Images uint8 `[N, C, H, W]` of the source domain (given or sampled from the source model), and their hash."""
        ...

    def training_images(self) -> tuple[Tensor, str]:
        """This fold's training images uint8 `[N, C, H, W]`, and their hash."""
        ...

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        ...


@dataclass(frozen=True)
class Adversary:
    """A network that is trained against the denoiser, in a phase of its own before the denoiser's."""

    name: str
    """Of its phase, its optimiser, and its parameters in checkpoints."""
    network: nn.Module
    optimizer: Optimizer
    phase: Phase


@dataclass(frozen=True)
class Part:
    """What a method contributes to the denoising objective."""

    selector: NoiseSelector | None = None
    regularizer: Regularizer | None = None
    relation: Relation | None = None
    adversaries: Sequence[Adversary] = ()
    one_timestep: bool = False
    """All images of a global batch get one t."""


class GanIngredients(Protocol):
    """What a GAN's method may ask for when it is made."""

    @property
    def gan(self) -> Gan:
        """The student."""
        ...

    @property
    def seed(self) -> int:
        """For stages; the same in all trials of a sweep."""
        ...

    @property
    def source_hash(self) -> str:
        """Of the source's weights."""
        ...

    def source_gan(self) -> Gan:
        """A frozen copy of the source, in eval mode, on the student's device."""
        ...

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        ...


Family = Literal["diffusion", "gan"]


@dataclass(frozen=True)
class Registered:
    """A method's configuration type and its maker."""

    config: type[MethodConfig]
    make: Callable[[Any, Any], Any]
    """From settings and the family's ingredients to its part."""
    stages: Callable[[Any, Any], Sequence[Stage]]
    families: frozenset[Family]


METHODS: dict[str, Registered] = {}
C = TypeVar("C", bound=MethodConfig)
Maker = Callable[[C, Ingredients], Part]
GanMaker = Callable[[C, GanIngredients], "GanPart"]


def no_stages(config: MethodConfig, ingredients: Any) -> Sequence[Stage]:
    """A method that prepares nothing."""
    return ()


def register(
    name: str,
    config: type[C],
    *,
    stages: Callable[[C, Ingredients], Sequence[Stage]] = no_stages,
    families: Iterable[Family] = ("diffusion",),
) -> Callable[[Maker[C]], Maker[C]]:
    """Enter a method of diffusion models under the name it has in a sweep file; `stages` are built before any trial starts."""

    def enter(make: Maker[C]) -> Maker[C]:
        METHODS[name] = Registered(config, make, stages, frozenset(families))
        return make

    return enter


def register_gan(
    name: str, config: type[C], *, stages: Callable[[C, GanIngredients], Sequence[Stage]] = no_stages
) -> Callable[[GanMaker[C]], GanMaker[C]]:
    """Enter a method of GANs under the name it has in a sweep file; `stages` are built before any trial starts."""

    def enter(make: GanMaker[C]) -> GanMaker[C]:
        METHODS[name] = Registered(config, make, stages, frozenset({"gan"}))
        return make

    return enter
