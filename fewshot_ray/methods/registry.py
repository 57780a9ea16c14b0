"""The methods by name, each with the type of its settings and the function that makes it."""

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
    """A method's settings. A field's default is the paper's preset; the range that `search` stands for is declared with its type.

    For example `guidance: Annotated[float, Field(ge=0), FloatRange(0, 10)] = 5.0`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    cheap_stages: ClassVar[Mapping[str, Any]] = {}
    """Settings that shorten the stages and leave the cost of a training step unchanged: for timing a few steps."""

    least_batch: ClassVar[int] = 1
    """Smallest global batch, in images."""

    needs_source: ClassVar[bool] = False
    """Whether the method needs a trained source model."""

    @classmethod
    def misfit(cls, given: Mapping[str, Any]) -> tuple[str, str] | None:
        """A field that the other given settings make pointless, and the message for it, else None; ranges stand as in the file."""
        return None

    def check(self, backbone: Backbone) -> None:
        """Raise UserError where the method can't work on the backbone with these settings, or something it needs can't be loaded."""

    @property
    def group_size(self) -> int:
        """Size of the groups of images that are compared with each other on one worker; a batch is a whole number of groups."""
        return 1

    @property
    def prepares(self) -> bool:
        """Whether these settings have stages to build before trials start."""
        return False


def declared_ranges(config: type[BaseModel]) -> dict[str, Range]:
    """The ranges declared beside the fields: what `method: {name: search}` searches."""
    return {name: item for name, field in config.model_fields.items() for item in field.metadata if isinstance(item, Range)}


class Ingredients(Protocol):
    """What a method of diffusion models is made from; everything is loaded when first used."""

    @property
    def backbone(self) -> Backbone:
        """The student's backbone."""
        ...

    @property
    def seed(self) -> int:
        """The seed of stages, the same in all trials of a sweep."""
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
    """A network that is trained against the denoiser, in a separate phase before the denoiser's."""

    name: str
    """Name of its phase, of its optimiser, and prefix of its parameters in checkpoints."""
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
    """Whether all images of a global batch get the same t."""


class GanIngredients(Protocol):
    """What a method of GANs is made from; everything is loaded when first used."""

    @property
    def gan(self) -> Gan:
        """The GAN that is trained."""
        ...

    @property
    def seed(self) -> int:
        """The seed of stages, the same in all trials of a sweep."""
        ...

    @property
    def source_hash(self) -> str:
        """Hash of the source's weights."""
        ...

    def source_gan(self) -> Gan:
        """A frozen copy of the source, in eval mode, on the device of the trained GAN."""
        ...

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        ...


Family = Literal["diffusion", "gan"]


@dataclass(frozen=True)
class Registered:
    """A method: the type of its settings, and the functions that make its part and its stages."""

    config: type[MethodConfig]
    make: Callable[[Any, Any], Any]
    """Makes the method's part from its settings and the family's ingredients."""
    stages: Callable[[Any, Any], Sequence[Stage]]
    families: frozenset[Family]


METHODS: dict[str, Registered] = {}
C = TypeVar("C", bound=MethodConfig)
Maker = Callable[[C, Ingredients], Part]
GanMaker = Callable[[C, GanIngredients], "GanPart"]


def no_stages(config: MethodConfig, ingredients: Any) -> Sequence[Stage]:
    """No stages: for a method that prepares nothing."""
    return ()


def register(
    name: str,
    config: type[C],
    *,
    stages: Callable[[C, Ingredients], Sequence[Stage]] = no_stages,
    families: Iterable[Family] = ("diffusion",),
) -> Callable[[Maker[C]], Maker[C]]:
    """Register a method of diffusion models under its name in a run's file; `stages` are built before any trial starts."""

    def enter(make: Maker[C]) -> Maker[C]:
        METHODS[name] = Registered(config, make, stages, frozenset(families))
        return make

    return enter


def register_gan(
    name: str, config: type[C], *, stages: Callable[[C, GanIngredients], Sequence[Stage]] = no_stages
) -> Callable[[GanMaker[C]], GanMaker[C]]:
    """Register a method of GANs under its name in a run's file; `stages` are built before any trial starts."""

    def enter(make: GanMaker[C]) -> GanMaker[C]:
        METHODS[name] = Registered(config, make, stages, frozenset({"gan"}))
        return make

    return enter
