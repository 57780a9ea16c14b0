"""SADM's encoders, with the libraries' real architectures; what a hub serves is replaced by seeded random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn

from fewshot_ray.data.digits import digits
from fewshot_ray.data.images import to_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.metrics import load_extractor
from fewshot_ray.metrics.encoders import ENCODERS, load_encoder
from fewshot_ray.models.weights import INCEPTION
from tests.metrics.conftest import pictures

FEATURES = {"digits": 64, "inception": 2048, "dinov2": 32}


@pytest.fixture
def places(inception_file: Path, dinov2_folder: Path) -> dict[str, str | None]:
    """What `weights` is for each encoder."""
    return {"digits": None, "inception": str(inception_file), "dinov2": str(dinov2_folder)}


def some_images(name: str, count: int = 2) -> Tensor:
    """Grey 8x8 pictures for the digits, colour ones of an odd size for the others, in [-1, 1]."""
    return to_model_range(pictures(count, 1, 8) if name == "digits" else pictures(count, 3, 33))


@pytest.mark.parametrize("name", ENCODERS)
def test_gradients_reach_the_images_and_every_trainable_parameter(name: str, places: dict[str, str | None]) -> None:
    """Oracle: autograd; the images' gradient agrees with a finite difference along itself."""
    encoder = load_encoder(name, device="cpu", weights=places[name])
    images = some_images(name).mul(0.9).requires_grad_()
    features = encoder(images)
    assert features.shape == (2, FEATURES[name])
    assert features.dtype == torch.float32
    weighting = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (features * weighting).sum().backward()
    trainable = [(key, parameter) for key, parameter in encoder.named_parameters() if parameter.requires_grad]
    assert len(trainable) >= 8
    assert [key for key, parameter in trainable if parameter.grad is None or not parameter.grad.isfinite().all()] == []
    assert sum(float(parameter.grad.abs().sum()) > 0 for _, parameter in trainable if parameter.grad is not None) > 0.9 * len(trainable)
    assert images.grad is not None
    direction = images.grad / images.grad.norm()
    h = 1e-2
    with torch.no_grad():
        ahead, behind = ((encoder(images + sign * h * direction) * weighting).sum() for sign in (1, -1))
    assert float(ahead - behind) / (2 * h) == pytest.approx(float(images.grad.norm()), rel=0.1)


def test_digit_features_are_the_extractors() -> None:
    """Oracle: the metrics' extractor on the same uint8 images."""
    images = digits("target").images[:50]
    features = load_encoder("digits", device="cpu", weights=None)(to_model_range(images))
    torch.testing.assert_close(features.detach(), load_extractor("digits", device="cpu").features(images))


def test_inception_features_are_the_extractors(inception_file: Path) -> None:
    """Oracle: the metrics' extractor, on pictures whose resize leaves whole numbers: 299x299 ones, colour and grey."""
    encoder = load_encoder("inception", device="cpu", weights=str(inception_file))
    extractor = load_extractor("inception", device="cpu", weights=str(inception_file))
    for images in (pictures(2, 3, 299), pictures(1, 1, 299, seed=1)):
        expected = extractor.features(images)
        assert float(expected.std()) > 1e-3
        with torch.no_grad():
            features = encoder(to_model_range(images))
        torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().mean()))


def test_inception_features_of_small_images_differ_by_the_rounding_alone(inception_file: Path) -> None:
    """Oracle: the metrics' extractor, which rounds the resized picture to 8 bits; another picture is far further away."""
    encoder = load_encoder("inception", device="cpu", weights=str(inception_file))
    images = pictures(2, 3, 40)
    expected = load_extractor("inception", device="cpu", weights=str(inception_file)).features(images)
    with torch.no_grad():
        features = encoder(to_model_range(images))
    assert float((features - expected).norm(dim=1).max()) < 0.02 * float((expected[0] - expected[1]).norm())


def test_dinov2_features_are_transformers_own(dinov2_folder: Path) -> None:
    """Oracle: transformers' image processor and model, pooled output, on pictures that need no resize."""
    from transformers import BitImageProcessor, Dinov2Model
    from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    images = pictures(2, 3, 224)
    processor = BitImageProcessor(do_resize=False, do_center_crop=False, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)
    inputs = processor([image for image in images], return_tensors="pt", input_data_format="channels_first")  # noqa: C416
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(str(dinov2_folder)).eval()(**inputs).pooler_output
        features = load_encoder("dinov2", device="cpu", weights=str(dinov2_folder))(to_model_range(images))
    assert float((expected[0] - expected[1]).norm()) > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["inception", "dinov2"])
def test_grey_is_repeated_to_three_channels(name: str, places: dict[str, str | None]) -> None:
    """Oracle: the same picture in RGB."""
    encoder = load_encoder(name, device="cpu", weights=places[name])
    grey = to_model_range(pictures(1, 1, 20))
    with torch.no_grad():
        torch.testing.assert_close(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("name", ENCODERS)
def test_train_leaves_the_encoder_in_eval_mode(name: str, places: dict[str, str | None]) -> None:
    """Oracle: no module in training mode, the same features twice, and the buffers (BatchNorm's statistics) untouched; in a parent too."""
    encoder = load_encoder(name, device="cpu", weights=places[name])
    assert not encoder.training
    buffers = {key: value.clone() for key, value in encoder.named_buffers()}
    assert any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()) == (name == "inception")
    with torch.no_grad():
        before = encoder(some_images(name))
        encoder.train()
        nn.ModuleList([encoder]).train()
        assert [module for module in encoder.modules() if module.training] == []
        torch.testing.assert_close(encoder(some_images(name)), before, rtol=0, atol=0)
    for key, value in encoder.named_buffers():
        torch.testing.assert_close(value, buffers[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_load_is_a_network_of_its_own(name: str, places: dict[str, str | None]) -> None:
    """Oracle: disjoint storage; a step on one leaves the other, and the metrics' own, where they were."""
    one, two = (load_encoder(name, device="cpu", weights=places[name]) for _ in range(2))
    tensors = [{value.untyped_storage().data_ptr() for value in encoder.state_dict().values()} for encoder in (one, two)]
    assert not tensors[0] & tensors[1]
    graded = digits("target").images[:3]
    extractor = load_extractor("digits", device="cpu")
    expected = extractor.features(graded)
    with torch.no_grad():
        before = two(some_images(name))
        for parameter in one.parameters():
            parameter.add_(1.0)
        torch.testing.assert_close(two(some_images(name)), before, rtol=0, atol=0)
    torch.testing.assert_close(extractor.features(graded), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())  # type: ignore[attr-defined]


def refused(name: str, weights: str | None = None, field: str | None = None) -> str:
    """The one line that `load_encoder` refuses with."""
    with pytest.raises(UserError) as refusal:
        load_encoder(name, device="cpu", weights=weights, **({"field": field} if field else {}))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_refusals_name_the_field(tmp_path: Path) -> None:
    """Oracle: one line with the field, and what would be right."""
    assert "did you mean dinov2" in refused("dino")
    assert refused("dino").startswith("method.sadm.encoder: ")
    assert refused("digits", "digits.pth").startswith("method.sadm.encoder_weights: 'digits.pth'")
    assert refused("digits", "digits.pth", "elsewhere.weights").startswith("elsewhere.weights: ")
    encoder = load_encoder("digits", device="cpu", weights=None)
    with pytest.raises(UserError, match=r"method\.sadm\.encoder: 'digits' reads 1x8x8 images, not 3x32x32"):
        encoder(torch.zeros(2, 3, 32, 32))
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    assert "not the weights of FID's Inception-V3" in refused("inception", str(tmp_path / "other.pth"))


def test_inception_weights_that_cannot_be_had(tmp_path: Path) -> None:
    """Oracle: the line has the file, torch hub's folder, and SADM's field instead of the metrics'."""
    message = refused("inception")
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / INCEPTION.url.rsplit("/", 1)[1]) in message
    assert "method.sadm.encoder_weights" in message
    assert "evaluate" not in message
    assert "elsewhere.weights" in refused("inception", None, "elsewhere.weights")


def test_dinov2_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Oracle: huggingface_hub's own offline mode; the line has the model, its address, and the field."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for weights, model in ((None, "facebook/dinov2-small"), ("facebook/dinov2-base", "facebook/dinov2-base")):
        message = refused("dinov2", weights)
        assert "could not be downloaded" in message
        assert f"https://huggingface.co/{model}" in message
        assert "method.sadm.encoder_weights" in message
    assert "no folder here" in refused("dinov2", str(tmp_path / "none"))


def test_folders_that_are_no_dinov2(tmp_path: Path, dinov2_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Oracle: one line with the field and the folder, and nothing beside it; never a network half filled with random weights."""
    from safetensors.torch import load_file, save_file

    config = (dinov2_folder / "config.json").read_text()
    weights = load_file(dinov2_folder / "model.safetensors")
    (tmp_path / "empty").mkdir()
    cases = {"text": "no JSON", "layers": json.dumps({**json.loads(config), "num_hidden_layers": 3})}
    cases |= {"width": json.dumps({**json.loads(config), "hidden_size": 16}), "list": "[]", "damaged": config, "partial": config}
    for name, content in cases.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(content)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    save_file({"layernorm.bias": weights["layernorm.bias"]}, tmp_path / "partial" / "model.safetensors", metadata={"format": "pt"})
    for name in ("empty", *cases):
        message = refused("dinov2", str(tmp_path / name))
        assert message.startswith("method.sadm.encoder_weights: ")
        assert str(tmp_path / name) in message
    assert capfd.readouterr().err == ""


def test_importing_the_encoders_leaves_the_slow_libraries_alone() -> None:
    """Oracle: sys.modules of a fresh interpreter."""
    slow = ("torchmetrics", "transformers", "torch_fidelity")
    code = f"import sys, fewshot_ray.metrics.encoders; print([m for m in {slow} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
