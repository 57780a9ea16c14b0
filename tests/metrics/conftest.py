"""Pictures, and the real architectures with seeded random weights, for the tests of the extractors, LPIPS and the encoders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor


def pictures(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """Smooth random pictures uint8 [count, channels, side, side]."""
    coarse = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return (smooth * 255).round().to(torch.uint8)


def seeded(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Kaiming-normal weights for a network's state, norms left at identity."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in shapes.items():
        state[name] = tensor.clone()
        if tensor.ndim == 4:
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
    return state


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub can't be had here: an empty cache, and a download that fails as it does without a network."""

    def refuse(url: str, *_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of torch-fidelity's Inception-V3."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_, **__: None)
        network = module.FeatureExtractorInceptionV3("inception", ["2048"])
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(seeded(network.state_dict()), path)
    return path


def saved(folder: Path, make: Callable[[], Any]) -> Path:
    """A network of seeded random weights in a folder, as save_pretrained writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2, its random weights large enough for features that differ."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 28}
    config = Dinov2Config(**sizes, initializer_range=0.2, drop_path_rate=0.5)
    return saved(tmp_path_factory.mktemp("dinov2"), lambda: Dinov2Model(config))


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP image network that reads 28x28."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPVisionConfig(**sizes, image_size=28, patch_size=14, initializer_factor=10.0)
    return saved(tmp_path_factory.mktemp("clip"), lambda: CLIPVisionModelWithProjection(config))


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of torchvision's VGG16 trunk."""
    from torchvision.models.vgg import cfgs, make_layers

    trunk = make_layers(cfgs["D"])
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(seeded({f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}), path)
    return path
