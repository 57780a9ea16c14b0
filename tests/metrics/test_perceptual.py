"""LPIPS, with torchvision's real trunks and seeded random weights."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_perceptual
from fewshot_ray.metrics import perceptual as module
from fewshot_ray.metrics.perceptual import TRUNKS, PerceptualDistance, squared_distances
from tests.metrics.conftest import pictures, seeded

TORCHVISIONS = {"alex": "alexnet", "squeeze": "squeezenet1_1"}


@pytest.fixture(scope="module")
def perceptual(vgg_file: Path) -> PerceptualDistance:
    return load_perceptual(device="cpu", weights=str(vgg_file), size=48)


@pytest.fixture(scope="module", params=TORCHVISIONS)
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PerceptualDistance, Path]:
    """The networks beside VGG: the name, the distance, and the file of the whole torchvision model."""
    whole = getattr(torchvision.models, TORCHVISIONS[request.param])(weights=None)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(seeded(whole.state_dict()), path)
    return request.param, load_perceptual(device="cpu", weights=str(path), network=request.param, size=64), path


def test_lpips_is_torchmetrics_own(perceptual: PerceptualDistance) -> None:
    """Oracle: torchmetrics' LPIPS function over the same network, on pictures that need no resize."""
    from torchmetrics.functional.image.lpips import _lpips_update

    a, b = pictures(3, 3, 48), pictures(3, 3, 48, seed=1)
    expected = _lpips_update(a.float() / 255, b.float() / 255, perceptual.network, normalize=True)
    assert float(expected.min()) > 0
    torch.testing.assert_close(perceptual.distance(a, b), expected)


def test_lpips_trunk_is_the_file(perceptual: PerceptualDistance, vgg_file: Path) -> None:
    """Oracle: torchvision's VGG16 layers filled from the same file: its activations after relu3_3."""
    from torchvision.models.vgg import cfgs, make_layers

    state = torch.load(vgg_file, weights_only=True)
    trunk = make_layers(cfgs["D"])
    trunk.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()})
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(perceptual.network.net(images).relu3_3, trunk[:16](images).detach())


def test_lpips_matrix_is_the_distance_of_each_pair(perceptual: PerceptualDistance) -> None:
    """Oracle: torchmetrics' forward pass pair by pair; grey pictures of another size; more images than a block."""
    a, b = pictures(9, 1, 30), pictures(2, 1, 30, seed=1)
    matrix = perceptual.matrix(a, b)
    assert matrix.shape == (9, 2)
    for j in range(2):
        torch.testing.assert_close(matrix[:, j], perceptual.distance(a, b[j : j + 1].expand(9, -1, -1, -1)), rtol=1e-4, atol=1e-6)
    own = perceptual.matrix(a, a)
    assert own.diagonal().abs().max() == 0
    torch.testing.assert_close(own, own.T)


def test_other_trunks_are_the_file_and_torchmetrics_own(small: tuple[str, PerceptualDistance, Path]) -> None:
    """Oracle: torchvision's network filled from the same file, its last map; torchmetrics' function; the matrix pair by pair."""
    from torchmetrics.functional.image.lpips import _lpips_update

    name, distance, path = small
    whole = getattr(torchvision.models, TORCHVISIONS[name])(weights=None)
    whole.load_state_dict(torch.load(path, weights_only=True))
    a, b = pictures(3, 3, 64), pictures(3, 3, 64, seed=1)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    last = {"alex": 12, "squeeze": 13}[name]
    torch.testing.assert_close(distance.network.net(images)[-1], whole.features[:last].eval()(images).detach())
    expected = _lpips_update(a.float() / 255, b.float() / 255, distance.network, normalize=True)
    assert float(expected.min()) > 0
    torch.testing.assert_close(distance.distance(a, b), expected)
    torch.testing.assert_close(distance.matrix(a, b).diagonal(), expected, rtol=1e-4, atol=1e-6)
    assert distance.id == f"lpips-{name}"


@pytest.mark.parametrize("name", TRUNKS)
def test_heads_are_not_negative(name: str, vgg_file: Path, tmp_path: Path) -> None:
    """Oracle: torchmetrics' files; an embedding takes the heads' roots."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    assert all(float(head.model[-1].weight.min()) >= 0 for head in _NoTrainLpips(net=name, pnet_rand=True).lins)


@pytest.mark.parametrize("kept", [0, 3, 100])
def test_embeddings_are_computed_once_as_far_as_memory_goes(
    kept: int, perceptual: PerceptualDistance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the images that the network saw; the values whatever is kept."""
    a = pictures(9, 1, 30)
    expected = PerceptualDistance(perceptual.network, "", perceptual.device, size=48, batch_images=2).matrix(a, a)
    seen: list[int] = []
    embedding = perceptual.embedding

    def counted(images: Tensor) -> Tensor:
        seen.append(len(images))
        return embedding(images)

    monkeypatch.setattr(perceptual, "embedding", counted)
    monkeypatch.setattr(perceptual, "batch_images", 2)
    monkeypatch.setattr(module, "HELD_IMAGES", 4)
    monkeypatch.setattr(module, "KEPT_BYTES", kept * embedding(a[:1]).numel() * 4)
    embedded = perceptual.embedded(a)
    torch.testing.assert_close(embedded.within(torch.arange(9)), expected, rtol=1e-4, atol=1e-6)
    assert sum(seen) == {0: 4 + 5 + 4 + 1 + 1, 3: 4 + 5 + 4 + 1 + 1, 100: 9}[kept]
    seen.clear()
    some = torch.tensor([0, 2, 8])
    torch.testing.assert_close(embedded.within(some), expected[some][:, some], rtol=1e-4, atol=1e-6)
    assert sum(seen) == {0: 3, 3: 1, 100: 0}[kept]


def test_rows_and_columns_may_be_exchanged(perceptual: PerceptualDistance) -> None:
    """Oracle: the transpose; the larger side passes by the smaller one either way."""
    a, b = pictures(5, 1, 30), pictures(2, 1, 30, seed=1)
    torch.testing.assert_close(perceptual.matrix(a, b), perceptual.matrix(b, a).T)


def test_squared_distances_of_near_rows_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: differences in float64; products of rows of length 1,000 that differ by 1e-3 would keep no digit."""
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 100)
    a = 30 * torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    b = torch.cat([a[:1], a[1:] + 1e-3 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(1))])
    exact = (a.double()[:, None] - b.double()).square().sum(2)
    found = squared_distances(a, b)
    assert found[0, 0] == 0
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=0)


def test_weights_that_give_no_numbers_are_refused(vgg_file: Path, tmp_path: Path) -> None:
    """Oracle: one line with the field and the pairs, from both ways to the distance."""
    state = torch.load(vgg_file, weights_only=True)
    state["features.0.bias"][:] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    broken = load_perceptual(device="cpu", weights=str(tmp_path / "nan.pth"), size=32)
    images = pictures(2, 3, 32)
    for measure, pairs in ((broken.distance, 2), (broken.matrix, 4)):
        with pytest.raises(UserError, match=rf"^evaluate\.lpips_weights: lpips-vgg .* {pairs} of {pairs} pairs[^\n]*$"):
            measure(images, pictures(2, 3, 32, seed=1))


def test_each_trunk_that_cannot_be_had_is_named_with_its_place(tmp_path: Path) -> None:
    """Oracle: torchvision's own file names."""
    for name, model in (("vgg", "VGG16"), ("alex", "AlexNet"), ("squeeze", "SqueezeNet1_1")):
        file = getattr(torchvision.models, f"{model}_Weights").IMAGENET1K_V1.url.rsplit("/", 1)[1]
        with pytest.raises(UserError) as refusal:
            load_perceptual(device="cpu", network=name)  # type: ignore[arg-type]
        assert str(tmp_path / "torch" / "hub" / "checkpoints" / file) in str(refusal.value)
        assert "evaluate.lpips_weights" in str(refusal.value)


def test_another_networks_file_is_refused(small: tuple[str, PerceptualDistance, Path], vgg_file: Path) -> None:
    """Oracle: one line with the file and the network that is right."""
    name, _, path = small
    with pytest.raises(UserError, match=r"vgg16\.pth: .*torchvision's (AlexNet|SqueezeNet)"):
        load_perceptual(device="cpu", weights=str(vgg_file), network=name)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=rf"{path.name}: .*torchvision's VGG16"):
        load_perceptual(device="cpu", weights=str(path))


def test_weights_in_torch_hubs_cache_are_taken(tmp_path: Path, vgg_file: Path) -> None:
    """Oracle: the hash of the file laid there; the download would fail."""
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    cached.hardlink_to(vgg_file)
    assert load_perceptual(device="cpu").weights_hash == hashlib.sha256(vgg_file.read_bytes()).hexdigest()[:12]
