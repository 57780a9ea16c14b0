"""The methods' contract on every kind of backbone: latents, classes, learned variances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot_ray.data.images import from_model_range
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.phase import Batch
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.methods.sadm import Sadm, SadmConfig, make_sadm
from fewshot_ray.methods.sdft import Sdft, SdftConfig
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import with_class_table, without_label_dropping
from fewshot_ray.models.parameters import PARAMS, tune
from fewshot_ray.models.source import load_backbone
from fewshot_ray.storage import Folder
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.group import Group
from tests.methods.conftest import DIFFUSION_METHODS, ToyIngredients
from tests.methods.test_registry import check_losses, total
from tests.tiny_diffusion import Formula, draw, everything, images, learned_backbone
from tests.tiny_pipelines import WRITERS, write_dinov2
from tests.training.toys import training

SMALL: dict[str, dict[str, Any]] = {
    "ant": {"noise_steps": 1, "guidance": 1.0, "classifier_steps": 2, "classifier_batch": 4},
    "sadm": {"encoder": "dinov2", "decoded_images": 3},
}
Load = Callable[[str], Backbone]


class Ingredients(ToyIngredients):
    """RGB pictures for a backbone of any kind."""

    def source_images(self) -> tuple[Tensor, str]:
        return from_model_range(images(6, 1, channels=3, size=16)), "source"

    def training_images(self) -> tuple[Tensor, str]:
        return from_model_range(images(5, 2, channels=3, size=16)), "target"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A fresh backbone of a kind, with two classes where it has any."""
    root = tmp_path_factory.mktemp("pipelines")
    for kind, write in WRITERS.items():
        write(root / kind)
    write_dinov2(root / "dinov2")
    SMALL["sadm"]["encoder_weights"] = str(root / "dinov2")

    def load(kind: str) -> Backbone:
        source = load_backbone(str(root / kind))
        if not source.class_names:
            return source
        network = without_label_dropping(with_class_table(source.network, 2))  # type: ignore[arg-type]
        return Backbone(network, source.scheduler, autoencoder=source.autoencoder, class_names=("cats", "dogs"))

    return load


def method_of(name: str, backbone: Backbone, cache: Path, params: str = "full", **settings: Any) -> DiffusionMethod:
    config = DIFFUSION_METHODS[name].config(**{**SMALL.get(name, {}), **settings})
    ingredients = Ingredients(Folder(cache), backbone)
    tuned = tune(backbone.network, params, PARAMS[params][0](), seed=0)
    part = DIFFUSION_METHODS[name].make(config, ingredients)
    for number, parameter in enumerate(tuned.trained.values()):  # away from the source, where some gradients are zero
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    return DiffusionMethod(backbone, tuned, torch.optim.SGD(tuned.trained.values(), lr=0.1), [part], label_dropout=0.3)


def batch_of(backbone: Backbone, count: int = 4) -> Batch:
    labels = torch.arange(count) % 2 if backbone.class_names else None
    return batches_of(backbone, count, labels).micro_batches(0, Group.alone(), count)[0]


def batches_of(backbone: Backbone, count: int, labels: Tensor | None) -> Batches:
    pictures = from_model_range(images(count, channels=3, size=16))
    return Batches(pictures, count, seed=0, flip=True, device="cpu", autoencoder=backbone.autoencoder, labels=labels)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("name", DIFFUSION_METHODS)
def test_losses_and_gradients(name: str, kind: str, load: Load, tmp_path: Path) -> None:
    """Oracle: the contract: finite float32 losses a sample, and a finite gradient for every trained parameter."""
    backbone = load(kind)
    method = method_of(name, backbone, tmp_path)
    objective = everything(method, method.context(batch_of(backbone), Randomness(0)))
    check_losses(without_structure(objective), 4)
    assert ("vlb" in objective.per_sample) == (kind in ("learned", "dit"))
    torch.autograd.backward(total(objective), inputs=list(method.trained().values()))
    for key, parameter in method.trained().items():
        assert parameter.grad is not None, key
        assert bool(parameter.grad.isfinite().all()), key


def without_structure(objective: Any) -> Any:
    """A latent model's structure term has a row for each decoded image, not for each of the batch."""
    return objective._replace(per_sample={term: loss for term, loss in objective.per_sample.items() if term != "structure"})


@pytest.mark.parametrize("params", [name for name in PARAMS if name != "adaptor"])
def test_the_new_class_table_is_trained_whatever_else_is(params: str, load: Load, tmp_path: Path) -> None:
    """Oracle: the gradient of the classes and the null class that a batch has, and none elsewhere in the table."""
    backbone = load("dit")
    method = method_of("finetune", backbone, tmp_path, params)
    tables = [name for name in method.trained() if "embedding_table" in name]
    assert len(tables) == 2  # one a block
    method.label_dropout = 0.0
    total(everything(method, method.context(batch_of(backbone), Randomness(0)))).backward()
    for name in tables:
        gradient = method.trained()[name].grad
        assert gradient is not None
        assert [bool(row.abs().sum() > 0) for row in gradient] == [True, True, False]


def test_labels_are_dropped_by_the_draw(load: Load, tmp_path: Path) -> None:
    """Oracle: the share asked for, the same labels for the same step, and the null class in their place."""
    backbone = load("dit")
    method = method_of("finetune", backbone, tmp_path)
    whole = batch_of(backbone, 200)
    labels = [method.context(whole, Randomness(7)).labels for _ in range(2)]
    assert labels[0] is not None
    assert labels[1] is not None
    assert torch.equal(labels[0], labels[1])
    dropped = labels[0] == backbone.null_label
    assert 0.2 < float(dropped.float().mean()) < 0.4
    assert torch.equal(labels[0][~dropped], whole.labels[~dropped])  # type: ignore[index]


@pytest.mark.parametrize("kind", ["ldm-vq", "ldm-kl", "dit"])
def test_a_latent_models_structure_in_micro_batches(kind: str, load: Load, tmp_path: Path) -> None:
    """Oracle: the whole batch at once: two adversarial steps with three of five images decoded, in micro-batches of 2 and 1."""
    results = []
    for micro_batch in (5, 2, 1):
        backbone = load(kind)
        method = method_of("sadm", backbone, tmp_path, warmup_steps=0, eta=10.0)
        labels = torch.arange(5) % 2 if backbone.class_names else None
        run = training(method, from_model_range(images(5, channels=3, size=16)), lr=1e-3, micro_batch=micro_batch)
        run.batches = batches_of(backbone, 5, labels)
        results.append((run.advance(2), {**method.trained(), **method.auxiliary()}))
    for loss, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-4)
        for key, parameter in weights.items():
            of_adam = key.startswith("psi")
            torch.testing.assert_close(parameter, results[0][1][key], atol=3e-4 if of_adam else 1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["ldm-vq", "ldm-kl"])
def test_structure_is_of_decoded_images(kind: str, load: Load, tmp_path: Path) -> None:
    """Oracle: Psi of the autoencoder's own decoding, clamped afterwards: latents are not."""
    backbone = load(kind)
    part = make_sadm(SadmConfig(**SMALL["sadm"]), Ingredients(Folder(tmp_path), backbone))
    assert isinstance(part.relation, Sadm)
    batch = batch_of(backbone)
    method = DiffusionMethod(backbone, tune(backbone.network, "full", PARAMS["full"][0](), seed=0), torch.optim.SGD([torch.zeros(1)]), [])
    it = method.context(batch, Randomness(0))
    rows = part.relation.rows(it)
    assert [len(row) for row in rows.values()] == [3, 3, 3]
    assert backbone.autoencoder is not None
    latents = it.x_0[:3]
    decoded = backbone.autoencoder.model.decode(latents / backbone.autoencoder.model.config.scaling_factor).sample
    torch.testing.assert_close(rows["real"], part.relation.psi(decoded.clamp(-1, 1)))


def test_of_a_learned_variance_the_prediction_alone_is_distilled() -> None:
    """Oracle: a teacher and a student that differ in the variance alone have nothing to distil, whichever half is scaled."""
    it = draw(learned_backbone(), network=Formula(lambda x, t: torch.cat([0.3 * x, 9 * x], dim=1)))
    teacher = Formula(lambda x, t: torch.cat([0.3 * x, -x], dim=1))
    for loss in Sdft(SdftConfig(), teacher)(it).per_sample.values():
        assert float(loss.abs().max()) == 0.0
    other = Formula(lambda x, t: torch.cat([0.4 * x, 9 * x], dim=1))
    assert all(float(loss.min()) > 0 for loss in Sdft(SdftConfig(lambda_aux=0.0), other)(it).per_sample.values())
