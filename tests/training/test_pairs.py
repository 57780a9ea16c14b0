"""Every pair of methods takes the steps of the whole batch on one worker, however micro-batches and workers share it."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fewshot_ray.data.images import from_model_range
from fewshot_ray.methods.augment import Augmentation
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.gan import GanPart
from fewshot_ray.methods.registry import METHODS
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import with_class_table, without_label_dropping
from fewshot_ray.models.gan import Gan
from fewshot_ray.models.parameters import FullConfig, tune
from fewshot_ray.models.source import load_backbone
from fewshot_ray.storage import Folder
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from tests.conftest import Workers
from tests.methods.conftest import DIFFUSION_METHODS, ToyIngredients
from tests.tiny_diffusion import images
from tests.tiny_gan import method_of, tiny_fastgan, tiny_stylegan2
from tests.tiny_pipelines import WRITERS, write_dinov2
from tests.training.toys import training

KINDS = ("pixel", "ldm-kl", "dit")
DECODED = 4
MICRO_BATCH = 2
BATCHES = {"below the decoded images": 3, "above them": 6}
DIFFUSION_PAIRS = list(itertools.combinations(sorted(DIFFUSION_METHODS.keys() - {"finetune"}), 2))
GAN_METHODS = sorted(name for name, method in METHODS.items() if "gan" in method.families and name != "finetune")
GAN_PAIRS = list(itertools.combinations(GAN_METHODS, 2))
SETTINGS: dict[str, dict[str, Any]] = {
    "ant": {"noise_steps": 1, "guidance": 0.0},
    "sadm": {"encoder": "dinov2", "decoded_images": DECODED, "warmup_steps": 1},
    "ewc": {"weight": 1.0, "fisher_samples": 1},
    "freezed": {"layers": 1},
}


class GanIngredients:
    """A source that isn't the student, so that what keeps near it has something to do."""

    seed = 0
    source_hash = "source"

    def __init__(self, gan: Gan, source: Gan, cache: Folder) -> None:
        self.gan, self.source, self.cache = gan, source, cache

    def source_gan(self) -> Gan:
        return self.source

    def read(self, stage: Any) -> dict[str, torch.Tensor]:
        return dict(stage.compute())


@cache
def source_of(folder: str) -> Backbone:
    return load_backbone(folder)


def backbone_of(root: Path, kind: str) -> Backbone:
    """A fresh one, with two classes where it has any."""
    source = source_of(str(root / kind))
    backbone = source.copy(autoencoder=source.autoencoder)
    if not source.class_names:
        return backbone
    network = without_label_dropping(with_class_table(backbone.network, 2))  # type: ignore[arg-type]
    return Backbone(network, source.scheduler, autoencoder=source.autoencoder, class_names=("cats", "dogs"))


def diffusion_training(root: Path, kind: str, pair: tuple[str, ...], batch_size: int, micro_batch: int | str) -> Training:
    """Psi's phase begins with the second step."""
    backbone = backbone_of(root, kind)
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    ingredients = ToyIngredients(Folder(root / "cache"), backbone)
    parts = []
    for name in pair:
        weights = {"encoder_weights": str(root / "dinov2")} if name == "sadm" else {}
        config = METHODS[name].config(**SETTINGS.get(name, {}), **weights)
        parts.append(METHODS[name].make(config, ingredients))
    for number, parameter in enumerate(tuned.trained.values()):  # away from the source, where some terms are zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    method = DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values(), lr=1.0), parts)
    pictures = from_model_range(images(6, channels=3, size=16))
    run = training(method, pictures, group=Group(), lr=1e-3, batch_size=batch_size, micro_batch=micro_batch)
    labels = torch.arange(6) % 2 if backbone.class_names else None
    run.batches = Batches(pictures, batch_size, seed=0, flip=True, device="cpu", autoencoder=backbone.autoencoder, labels=labels)
    return run


def diffusion_losses(root: Path, kind: str, pair: tuple[str, ...], batch_size: int, micro_batch: int | str) -> list[float]:
    """Of two steps."""
    run = diffusion_training(root, kind, pair, batch_size, micro_batch)
    return [run.advance(step) for step in (1, 2)]


def gan_training(
    place: Path, gan: Gan, source: Gan, pair: tuple[str, ...], batch_size: int, augmentation: Augmentation | None = None
) -> Training:
    """The second step is MixDL's."""
    gan = gan.copy()  # what is sent to workers is in memory that they share
    for network in (source.generator, source.discriminator):
        network.eval().requires_grad_(network is source.generator)
    torch.manual_seed(0)  # heads
    ingredients = GanIngredients(gan, source, Folder(place))
    parts: list[GanPart] = [METHODS[name].make(METHODS[name].config(**SETTINGS.get(name, {})), ingredients) for name in pair]
    method = method_of(gan, parts, augmentation)
    method.workers = group = Group()
    pictures = from_model_range(images(6, channels=gan.channels, size=gan.size[0]))
    return training(method, pictures, group=group, lr=1e-3, batch_size=batch_size)


def gan_losses(place: Path, gan: Gan, source: Gan, pair: tuple[str, ...], batch_size: int) -> list[float]:
    """Of two steps."""
    run = gan_training(place, gan, source, pair, batch_size)
    return [run.advance(step) for step in (1, 2)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for kind in KINDS:
        WRITERS[kind](folder / kind)
    write_dinov2(folder / "dinov2")
    return folder


@pytest.mark.parametrize("batch_size", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", DIFFUSION_PAIRS, ids="+".join)
def test_a_pair_of_methods(pair: tuple[str, ...], kind: str, batch_size: int, root: Path, workers: Workers) -> None:
    """Oracle: two steps of the whole batch at once on one worker; in micro-batches, and on two workers in micro-batches of theirs."""
    whole = diffusion_losses(root, kind, pair, batch_size, "auto")
    shared = workers.run(diffusion_losses, root, kind, pair, batch_size, MICRO_BATCH)
    for losses in [diffusion_losses(root, kind, pair, batch_size, MICRO_BATCH), *shared]:
        assert losses == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("pair", GAN_PAIRS, ids="+".join)
def test_a_pair_of_methods_on_stylegan2(pair: tuple[str, ...], tmp_path: Path, workers: Workers) -> None:
    """Oracle: two steps on one worker, of two groups of latents; on two workers, a group each."""
    alone = gan_losses(tmp_path, tiny_stylegan2(8), tiny_stylegan2(8, seed=1), pair, 8)
    for losses in workers.run(gan_losses, tmp_path, tiny_stylegan2(8), tiny_stylegan2(8, seed=1), pair, 8):
        assert losses == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("pair", GAN_PAIRS, ids="+".join)
def test_a_pair_of_methods_on_fastgan(pair: tuple[str, ...], tmp_path: Path) -> None:
    """Oracle: finite losses of two steps, of one group of latents."""
    assert all(map(math.isfinite, gan_losses(tmp_path, tiny_fastgan(), tiny_fastgan(seed=1), pair, 4)))
