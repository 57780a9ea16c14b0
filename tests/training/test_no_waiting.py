"""A training step never makes the host wait for a GPU.

Shown without one: the training is copied to PyTorch's `meta` device, whose tensors have shapes and no values. Whatever needs a value on
the host fails there (`.item()`, `float`, `tolist`, `nonzero`, a mask as index, `unique`, `equal`, `.cpu()`), as it would wait on a GPU;
what waits in other ways is looked for in the operations that are dispatched.
"""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fewshot_ray.data.images import from_model_range
from fewshot_ray.methods.augment import Ada, AdaConfig, DiffAugment, DiffAugmentConfig
from fewshot_ray.methods.phase import Batch, Objective
from fewshot_ray.methods.randomness import Randomness, on_device
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.compose import compose, expand
from fewshot_ray.trial.families import materials_of
from tests.methods.conftest import DIFFUSION_METHODS, ToyIngredients
from tests.methods.test_registry import compose as compose_parts
from tests.methods.test_registry import quick
from tests.tiny_diffusion import images
from tests.tiny_gan import tiny_fastgan, tiny_stylegan2
from tests.tiny_pipelines import WRITERS, write_dinov2
from tests.training.test_pairs import GAN_METHODS, KINDS, diffusion_training, gan_training
from tests.training.toys import CPU, Toy, grey, training
from tests.trial.test_gan import document

META = torch.device("meta")
FOUR = grey(0, 60, 200, 255)


class Shapes(Randomness):
    """Draws of the right shape: the meta device has no generators."""

    def generator(self, step: int, purpose: str) -> Any:
        return None


class Valueless(Training):
    """A training on the meta device, which has no autocast."""

    def _autocast(self) -> Any:
        return nullcontext()


class Waits(TorchDispatchMode):
    """What would wait on a GPU, although it needs no value."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        given = [one for item in args for one in (item if isinstance(item, (list, tuple)) else [item]) if isinstance(one, Tensor)]
        host = any(tensor.device == CPU for tensor in given)
        if name in ("_to_copy", "copy_") and host and result.device == META and not kwargs.get("non_blocking"):
            self.found.append("numbers from the host, copied while it waits")
        if name == "lift_fresh" and result.device == META:
            self.found.append("torch.tensor on the device, or a list as index")
        if name.startswith(("index", "_index")) and host and given[0].device == META:
            self.found.append("an index on the host")
        if name == "_linalg_check_errors":
            self.found.append("torch.linalg asks whether it could")
        return result


def reachable(root: object) -> Iterator[object]:
    """Every object that a copy would hold."""
    seen, left = {id(root)}, [root]
    while left:
        one = left.pop()
        yield one
        for other in gc.get_referents(one):
            if id(other) not in seen and not isinstance(other, (type, ModuleType, FunctionType)):
                seen.add(id(other))
                left.append(other)


def without_values(tensor: Tensor) -> Tensor:
    moved = torch.empty_like(tensor, device=META)
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def on_meta(run: Training) -> Training:
    """A copy of a training whose tensors have no values."""
    copies: dict[int, Any] = {}
    for one in reachable(run):
        if isinstance(one, Tensor):
            copies[id(one)] = without_values(one)
        elif isinstance(one, torch.device):
            copies[id(one)] = META
    moved = copy.deepcopy(run, copies)
    moved.__class__ = Valueless
    moved.randomness = Shapes(0, META)
    for optimizer in moved.method.optimizers().values():
        for settings in optimizer.param_groups:
            settings["fused"] = None  # PyTorch has no such kernel for this device; that optimisers are fused is tested below
    return moved


def waits(run: Training, steps: int = 2) -> list[str]:
    """What two steps would wait for: the second has Psi's and MixDL's phase."""
    run = on_meta(run)
    with Waits() as mode:
        for _ in range(steps):
            run.take_step()
    return mode.found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in KINDS:
        WRITERS[kind](folder / kind)
    write_dinov2(folder / "dinov2")
    return folder


DIFFUSION = [(name, "pixel", "auto") for name in DIFFUSION_METHODS]
DIFFUSION += [("sadm", "pixel", 2), ("sadm", "ldm-kl", "auto"), ("finetune", "dit", "auto")]


@pytest.mark.parametrize(("name", "kind", "micro_batch"), DIFFUSION)
def test_no_step_of_a_diffusion_model_waits(name: str, kind: str, micro_batch: int | str, root: Path) -> None:
    """Oracle: the meta device, and the operations that are dispatched."""
    assert waits(diffusion_training(root, kind, (name,), 4, micro_batch)) == []


def test_no_step_with_guidance_waits(tmp_path: Path) -> None:
    """Oracle: as above."""
    ant = DIFFUSION_METHODS["ant"].make(quick("ant", {"noise_steps": 1}), ToyIngredients(Folder(tmp_path)))
    assert waits(training(compose_parts([ant]), from_model_range(images(4)))) == []


GANS = [(name, lambda: tiny_stylegan2(8, 3)) for name in GAN_METHODS]
GANS += [(name, lambda: tiny_fastgan(64, 3)) for name in ("mixdl", "cdc")]


@pytest.mark.parametrize(("name", "make"), GANS)
def test_no_step_of_a_gan_waits(name: str, make: Callable[[], Any], tmp_path: Path) -> None:
    """Oracle: as above."""
    augmentation = DiffAugment(DiffAugmentConfig(policy=["color", "translation", "cutout"]))
    assert waits(gan_training(tmp_path, make(), make(), (name,), 4, augmentation)) == []


def test_no_step_with_ada_waits(tmp_path: Path) -> None:
    """Oracle: as above, with its probability changed in every step."""
    augmentation = Ada(AdaConfig(every_steps=1))
    assert waits(gan_training(tmp_path, tiny_stylegan2(8, 3), tiny_stylegan2(8, 3), ("mixdl",), 4, augmentation)) == []


@pytest.mark.parametrize(
    "sections",
    [{}, {"source": {"model": "embedded://digits-ddpm"}, "method": {"sadm": {}}, "evaluate": {"metrics": ["holdout_loss"]}}],
    ids=["gan", "diffusion"],
)
def test_optimisers_are_fused(sections: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: PyTorch: Adam that isn't fused reads its step count on the host."""
    materials = materials_of(compose(expand(document(**sections))), Folder(tmp_path), CPU)
    optimizers = materials.training(materials.folds[0], Group.alone()).method.optimizers()
    assert len(optimizers) == 2
    assert all(settings["fused"] for optimizer in optimizers.values() for settings in optimizer.param_groups)


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "a number": lambda x: float(x.sum()),
    "a decision": lambda x: x if x.sum() > 0 else -x,
    "a mask": lambda x: x[x > 0],
    "a list": lambda x: x.tolist(),
    "numbers from the host": lambda x: x * torch.ones(1).to(x.device),
    "numbers in a list": lambda x: x * torch.tensor([2.0], device=x.device),
    "an index on the host": lambda x: x[torch.zeros(1, dtype=torch.long)],
    "an inverse": lambda x: torch.linalg.inv(x.new_ones((2, 2))),
}


@pytest.mark.parametrize("case", WAITING)
def test_what_waits_is_found(case: str) -> None:
    """Oracle: by hand: a loss that does what waits on a GPU."""

    def loss(w: Tensor, batch: Batch) -> Objective:
        WAITING[case](w.detach())
        return Objective({"square": w.square().expand(len(batch.x_0))}, {"square": 1.0})

    try:
        found = waits(training(Toy([0.5], loss), FOUR), 1)
    except (RuntimeError, NotImplementedError) as error:  # no value
        found = [str(error)]
    assert found != []


def test_pinned_numbers_from_the_host_do_not_wait() -> None:
    """Oracle: `on_device`, by which every step's own numbers go to the device."""

    def loss(w: Tensor, batch: Batch) -> Objective:
        return Objective({"square": w.square() * on_device(torch.ones(len(batch.x_0)), w.device)}, {"square": 1.0})

    assert waits(training(Toy([0.5], loss), FOUR), 1) == []
    assert math.isfinite(training(Toy([0.5], loss), FOUR).advance(1))
