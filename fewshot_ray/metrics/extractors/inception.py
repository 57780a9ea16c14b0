"""`inception`: Inception-V3 as FID knows it, by torchmetrics and torch-fidelity (imported only when needed: they take seconds)."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors.protocol import Extractor, checked, in_batches, resize_rgb
from fewshot_ray.metrics.protocols import MetricProtocol, Resize
from fewshot_ray.models.weights import INCEPTION, Weights, find_weights, serialised

LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
"""In the order of torch-fidelity's forward pass, up to the pool features."""
SIZE = 299
FEATURES = 2048
SPATIAL_LAYER = "Mixed_6d"
"""TensorFlow's `mixed_6`, whose first branch (`mixed_6/conv`) has the first channels."""
SPATIAL_CHANNELS = 7
SPATIAL = SPATIAL_CHANNELS * 17 * 17


RESIZES: Mapping[Resize, str] = {
    "clean": "antialiased bicubic to 299x299",
    "pytorch": "bilinear to 299x299, by PyTorch",
    "tensorflow": "bilinear to 299x299, as TensorFlow 1's",
}


class InceptionOutputs(NamedTuple):
    """What one pass gives: pool features [N, 2048], the 17x17 map's first seven channels [N, 2023], logits without bias [N, 1008]."""

    features: Tensor
    spatial: Tensor
    logits: Tensor


@dataclass(frozen=True)
class InceptionExtractor:
    """Inception-V3 as FID uses it (the 2015-12-05 graph, pool features, D = 2048), by torchmetrics.

    Images come in at 299x299 as `way` says, by default through an antialiased bicubic resize, rounded to 8 bits (Parmar et al. 2022).
    """

    network: nn.Module
    weights_hash: str
    device: torch.device
    id: str = "inception-v3-2048"
    way: Resize = "clean"
    dimension: int = FEATURES
    batch_images: int = 32

    @property
    def resize(self) -> str:
        """The resize in words."""
        return RESIZES[self.way]

    def features(self, images: Tensor) -> Tensor:
        """Features [N, 2048] of uint8 [N, C, H, W], grey or RGB."""
        return in_batches(lambda batch: self._of(batch)[:, :FEATURES], images, self.batch_images, self.id)

    @torch.no_grad()
    def outputs(self, images: Tensor) -> InceptionOutputs:
        """All that metrics read of uint8 [N, C, H, W], in one pass."""
        features, spatial = in_batches(self._of, images, self.batch_images, self.id).split([FEATURES, SPATIAL], dim=1)
        classes: Tensor = getattr(self.network, "fc").weight  # noqa: B009 - of a module without types
        return InceptionOutputs(features.contiguous(), spatial.contiguous(), checked(features @ classes.float().cpu().T, self.id))

    def _of(self, images: Tensor) -> Tensor:
        x = prepared(images.to(self.device), self.way)
        spatial = x
        for name in LAYERS:
            x = getattr(self.network, name)(x)
            if name == SPATIAL_LAYER:
                spatial = x[:, :SPATIAL_CHANNELS].flatten(1)
        return torch.cat([x.flatten(1), spatial], 1)


def prepared(images: Tensor, way: Resize) -> Tensor:
    """Images uint8 [N, C, H, W], grey or RGB -> what the network's first layer reads, float32 [N, 3, 299, 299], about -1 to 1.

    `clean` is Parmar et al.'s, `tensorflow` the 2015-12-05 graph's own, `pytorch` pytorch-fid's, which maps 255 to 1, not 256.
    """
    if way == "clean":
        return (resize_rgb(images, SIZE).round() - 128) / 128
    rgb = images.float().expand(-1, 3, -1, -1)
    if way == "pytorch":
        return interpolate(rgb / 255, (SIZE, SIZE), mode="bilinear", align_corners=False) * 2 - 1
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    resized: Tensor = interpolate_bilinear_2d_like_tensorflow1x(rgb, (SIZE, SIZE), align_corners=False)
    return (resized - 128) / 128


def under(extractor: Extractor, protocol: MetricProtocol) -> Extractor:
    """The extractor with the protocol's resize; protocols say nothing of others than Inception."""
    return replace(extractor, way=protocol.resize) if isinstance(extractor, InceptionExtractor) else extractor


def load_inception(device: torch.device, weights: str | None, field: str) -> InceptionExtractor:
    """With the file `weights`, or the published ones. Raises UserError where they can't be had or are another network's."""
    found = find_weights(replace(INCEPTION, field=field), weights)
    return InceptionExtractor(inception_network(found).to(device), found.hash, device)


def inception_network(weights: Weights) -> nn.Module:
    """A fresh network of torch-fidelity's with these weights, frozen, on the CPU. Raises UserError where they are another network's."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], serialised(weights))
    except RuntimeError as error:  # load_state_dict's, a line for each missing or extra name
        raise UserError(f"{weights.place}: not the weights of {INCEPTION.network}; {INCEPTION.url} is right") from error
    return network


def pooling_layers(network: nn.Module) -> nn.Sequential:
    """The layers from standardised images [N, 3, 299, 299] to the pool features [N, 2048, 1, 1]."""
    return nn.Sequential(OrderedDict((name, getattr(network, name)) for name in LAYERS))
