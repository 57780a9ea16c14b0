"""`clip`: CLIP's image embedding, as CMMD uses it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshot_ray.metrics.extractors.protocol import in_batches, resize_rgb, standardised
from fewshot_ray.metrics.extractors.transformer import CLIP, load_transformer, located, weights_hash

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipExtractor:
    """The projected image embedding at unit length (Radford et al. 2021), D = 768 for ViT-L/14 at 336x336, CMMD's network.

    As in the code of Jayasumana et al. 2024, images are cropped to their central square and come in at the network's own size through
    an antialiased bicubic resize, rounded to 8 bits, with CLIP's mean and deviation.
    """

    network: nn.Module
    weights_hash: str
    dimension: int
    size: int
    device: torch.device
    batch_images: int = 16

    @property
    def id(self) -> str:
        """With the dimension and the size of its input, which tell the network."""
        return f"clip-{self.dimension}-{self.size}"

    @property
    def resize(self) -> str:
        """Crop and resize."""
        return f"central square, antialiased bicubic to {self.size}x{self.size}"

    def features(self, images: Tensor) -> Tensor:
        """Features [N, D] at unit length of uint8 [N, C, H, W], grey or RGB."""

        def of(batch: Tensor) -> Tensor:
            pixels = resize_rgb(_central_square(batch.to(self.device)), self.size).round()
            embeddings: Tensor = self.network(standardised(pixels, MEAN, STD)).image_embeds
            return nn.functional.normalize(embeddings, dim=1)

        return in_batches(of, images, self.batch_images, self.id)


def load_clip(device: torch.device, weights: str | None, field: str) -> ClipExtractor:
    """The folder or hub id `weights`, of any CLIP, else ViT-L/14 at 336x336. Raises UserError where it can't be had or doesn't fit."""
    folder = located(CLIP, weights or CLIP.hub_id, field)
    network = load_transformer(CLIP, folder, field).eval().requires_grad_(False)
    return ClipExtractor(network.to(device), weights_hash(folder), network.config.projection_dim, network.config.image_size, device)


def _central_square(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]
