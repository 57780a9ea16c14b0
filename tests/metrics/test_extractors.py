"""Extractors and LPIPS, with the libraries' real architectures and seeded random weights."""

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fewshot_ray.data.digits import digits
from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_extractor, load_perceptual
from fewshot_ray.metrics.digit_network import WEIGHTS_FILE, DigitNetwork
from fewshot_ray.metrics.extractors import resize_rgb
from fewshot_ray.models.weights import read_weights
from tests.metrics.conftest import pictures, seeded


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of torchvision's VGG16 trunk."""
    from torchvision.models.vgg import cfgs, make_layers

    trunk = make_layers(cfgs["D"])
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(seeded({f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}), path)
    return path


@pytest.fixture(scope="module")
def perceptual(vgg_file: Path) -> Any:
    return load_perceptual(device="cpu", weights=str(vgg_file), size=48)


def test_importing_the_metrics_leaves_the_slow_libraries_alone() -> None:
    """Oracle: sys.modules of a fresh interpreter."""
    code = "import sys, fewshot_ray.metrics; print([m for m in ('torchmetrics', 'transformers', 'torch_fidelity') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_bundled_digit_network_is_small_and_knows_both_domains() -> None:
    """Oracle: the digits' own labels; the target was never trained on."""
    assert WEIGHTS_FILE.stat().st_size < 250_000
    extractor = load_extractor("digits", device="cpu")
    network: DigitNetwork = extractor.network  # type: ignore[attr-defined]
    assert sum(parameter.numel() for parameter in network.parameters()) == 49_122
    for part, least in (("source", 0.99), ("test", 0.97)):
        images, labels = digits(part)
        named = network.head(extractor.features(images)).argmax(1)
        assert float((named == labels).float().mean()) >= least


def test_digit_features_are_the_penultimate_layer_in_batches() -> None:
    """Oracle: the network called directly on x / 127.5 - 1."""
    extractor = load_extractor("digits", device="cpu")
    images = digits("target").images
    features = extractor.features(images)
    assert features.shape == (797, 64)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    direct = extractor.network.trunk(images.float() / 127.5 - 1)  # type: ignore[attr-defined]
    torch.testing.assert_close(features, direct.detach())
    assert extractor.weights_hash == hashlib.sha256(WEIGHTS_FILE.read_bytes()).hexdigest()[:12]


def test_digits_refuse_other_images_and_weights() -> None:
    """Oracle: the message names the size, or the field."""
    with pytest.raises(UserError, match="1x8x8 images, not 3x32x32"):
        load_extractor("digits", device="cpu").features(pictures(2, 3, 32))
    with pytest.raises(UserError, match="extractor_weights"):
        load_extractor("digits", device="cpu", weights="digits.pth")


def test_unknown_extractor_gets_the_nearest_name() -> None:
    """Oracle: one line with the nearest name."""
    with pytest.raises(UserError, match="did you mean inception") as refusal:
        load_extractor("inceptoin", device="cpu")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("side", [20, 400])
def test_resize_is_pillows(side: int) -> None:
    """Oracle: Pillow's bicubic resize of float pictures, clipped."""
    images = pictures(1, 1, side)
    resized = resize_rgb(images, 299)
    expected = Image.fromarray(images[0, 0].numpy().astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
    assert resized.shape == (1, 3, 299, 299)
    np.testing.assert_allclose(resized[0, 1].numpy(), np.asarray(expected).clip(0, 255), atol=0.01)


def test_inception_features_are_torchmetrics_own(inception_file: Path) -> None:
    """Oracle: torchmetrics' NoTrainInceptionV3 on the same weights, handed pictures that need no resize."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    extractor = load_extractor("inception", device="cpu", weights=str(inception_file))
    images = pictures(3, 3, 299)
    expected = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_file))(images)
    features = extractor.features(images)
    assert features.shape == (3, 2048)
    assert float(expected.std()) > 1e-3
    torch.testing.assert_close(features, expected)
    assert extractor.features(pictures(1, 1, 16)).shape == (1, 2048)
    assert extractor.weights_hash == hashlib.sha256(inception_file.read_bytes()).hexdigest()[:12]


def test_lpips_is_torchmetrics_own(perceptual: Any) -> None:
    """Oracle: torchmetrics' LPIPS function over the same network, on pictures that need no resize."""
    from torchmetrics.functional.image.lpips import _lpips_update

    a, b = pictures(3, 3, 48), pictures(3, 3, 48, seed=1)
    expected = _lpips_update(a.float() / 255, b.float() / 255, perceptual.network, normalize=True)
    assert float(expected.min()) > 0
    torch.testing.assert_close(perceptual.distance(a, b), expected)


def test_lpips_trunk_is_the_file(perceptual: Any, vgg_file: Path) -> None:
    """Oracle: torchvision's VGG16 layers filled from the same file: its activations after relu3_3."""
    from torchvision.models.vgg import cfgs, make_layers

    state = torch.load(vgg_file, weights_only=True)
    trunk = make_layers(cfgs["D"])
    trunk.load_state_dict({name.removeprefix("features."): tensor for name, tensor in state.items()})
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(perceptual.network.net(images).relu3_3, trunk[:16](images).detach())


def test_lpips_matrix_is_the_distance_of_each_pair(perceptual: Any) -> None:
    """Oracle: torchmetrics' forward pass pair by pair; grey pictures of another size; more images than a block."""
    a, b = pictures(9, 1, 30), pictures(2, 1, 30, seed=1)
    matrix = perceptual.matrix(a, b)
    assert matrix.shape == (9, 2)
    for j in range(2):
        torch.testing.assert_close(matrix[:, j], perceptual.distance(a, b[j : j + 1].expand(9, -1, -1, -1)), rtol=1e-4, atol=1e-6)
    own = perceptual.matrix(a, a)
    assert own.diagonal().abs().max() == 0
    torch.testing.assert_close(own, own.T)


def test_weights_that_cannot_be_had_are_named_with_their_place(tmp_path: Path) -> None:
    """Oracle: one line with the file, torch hub's folder, and the field."""
    for load, name, field in (
        (lambda: load_extractor("inception", device="cpu"), "weights-inception-2015-12-05-6726825d.pth", "evaluate.extractor_weights"),
        (lambda: load_perceptual(device="cpu"), "vgg16-397923af.pth", "evaluate.lpips_weights"),
    ):
        with pytest.raises(UserError) as refusal:
            load()
        message = str(refusal.value)
        assert str(tmp_path / "torch" / "hub" / "checkpoints" / name) in message
        assert field in message
        assert "no network" in message
        assert "\n" not in message


def test_weights_in_torch_hubs_cache_are_taken(tmp_path: Path, vgg_file: Path) -> None:
    """Oracle: the hash of the file laid there; the download would fail."""
    cached = tmp_path / "torch" / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    cached.hardlink_to(vgg_file)
    assert load_perceptual(device="cpu").weights_hash == hashlib.sha256(vgg_file.read_bytes()).hexdigest()[:12]


class Harmful:
    """What a pickle can do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harm"),)


def test_bad_weight_files_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the message names the file; a pickle that would run code runs none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not weights")
    torch.save({"features.0.weight": Harmful()}, tmp_path / "harmful.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "folder.pth").mkdir()
    names = [
        "text.pth",
        "empty.pth",
        "text.safetensors",
        "harmful.pth",
        "list.pth",
        "other.pth",
        "other.safetensors",
        "folder.pth",
        "none.pth",
    ]
    for name in names:
        with pytest.raises(UserError, match=name) as refusal:
            load_extractor("inception", device="cpu", weights=str(tmp_path / name))
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "harm").exists()
    for name in ("other.pth", "none.pth"):
        with pytest.raises(UserError, match=name):
            load_perceptual(device="cpu", weights=str(tmp_path / name))


def test_damaged_weight_files_never_end_in_a_traceback(tmp_path: Path) -> None:
    """Oracle: 300 files with random bytes changed or cut off are read or refused by UserError."""
    draw = random.Random(0)
    torch.save({"a": torch.zeros(3)}, tmp_path / "zip.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({"a": torch.zeros(3)}, tmp_path / "whole.safetensors")
    refused = 0
    for name in ("zip.pth", "legacy.pth", "whole.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            for _ in range(3):
                damaged[draw.randrange(len(damaged))] = draw.randrange(256)
            place = tmp_path / f"damaged-{name}"
            place.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
            try:
                read_weights(str(place))
            except UserError:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("name", ["folder.pth", "pipe.pth"])
def test_what_is_no_ordinary_file_is_not_waited_for(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(UserError, match=r"^[^\n]*these weights cannot be read"):
        read_weights(str(tmp_path / name))
