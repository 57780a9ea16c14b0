"""`digits`: the bundled network of the digits benchmark."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fewshot_ray.data.images import to_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.digit_network import FEATURES, WEIGHTS_FILE, DigitNetwork
from fewshot_ray.metrics.extractors.protocol import in_batches
from fewshot_ray.models.weights import read_weights


@dataclass(frozen=True)
class DigitExtractor:
    """The bundled digit network's penultimate layer, D = 64; 8x8 grey images only."""

    network: DigitNetwork
    weights_hash: str
    device: torch.device
    id: str = "digit-network-64"
    resize: str = "none"
    dimension: int = FEATURES
    batch_images: int = 512

    def features(self, images: Tensor) -> Tensor:
        """Features [N, 64] of uint8 [N, 1, 8, 8]. Raises UserError on images of another size or with colour."""
        if images.shape[1:] != (1, 8, 8):
            size = "x".join(str(side) for side in images.shape[1:])
            raise UserError(f"evaluate.extractor: 'digits' reads 1x8x8 images, not {size}; 'inception' is right for these")

        def of(batch: Tensor) -> Tensor:
            return self.network.features(to_model_range(batch.to(self.device)))

        return in_batches(of, images, self.batch_images, self.id)


def load_digits(device: torch.device, weights: str | None, field: str) -> DigitExtractor:
    """The one of this process and device. Raises UserError where `weights` is given: they are bundled."""
    if weights is not None:
        raise UserError(f"{field}: {weights!r} is given, but those of 'digits' are bundled; leave the field out")
    return _shared(device)


@cache
def _shared(device: torch.device) -> DigitExtractor:
    weights = read_weights(str(WEIGHTS_FILE))
    network = DigitNetwork()
    network.load_state_dict(dict(weights.tensors))
    return DigitExtractor(network.eval().requires_grad_(False).to(device), weights.hash, device)
