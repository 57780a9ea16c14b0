"""The frozen autoencoder of a latent diffusion model."""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor

from fewshot_ray.models.memory import in_parts

ENCODED_IMAGES = 8
"""Images per pass of the autoencoder."""


class Encoded(NamedTuple):
    """A normal distribution over latents, `[B, C, H, W]`."""

    mean: Tensor
    std: Tensor | None
    """Standard deviation; None where an image has one latent (VQ)."""


class Autoencoder:
    """Images to scaled latents and back; its parameters are never trained.

    A KL autoencoder gives mean and standard deviation, since latent diffusion trains on draws (Rombach et al. 2022); a VQ
    autoencoder's latents are those before quantisation, which its decoder applies.
    """

    def __init__(self, model: AutoencoderKL | VQModel) -> None:
        self.model = model.eval().requires_grad_(False)
        self.scale = float(model.config.scaling_factor)
        self.shift = float(getattr(model.config, "shift_factor", None) or 0.0)

    @property
    def channels(self) -> int:
        """C of the images."""
        return int(self.model.config.in_channels)

    @property
    def factor(self) -> int:
        """Downsampling factor: pixels per latent along a side."""
        return int(2 ** (len(self.model.config.block_out_channels) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """The distribution of the latents of images `[B, C, H, W]` in [-1, 1]."""
        if isinstance(self.model, VQModel):
            return Encoded(self._scaled(self.model.encode(images).latents), None)
        posterior = self.model.encode(images).latent_dist
        return Encoded(self._scaled(posterior.mean), self.scale * posterior.std)

    def decode(self, latents: Tensor) -> Tensor:
        """Images `[B, C, H, W]`, about [-1, 1] (not clamped); differentiable in the latents."""
        images: Tensor = self.model.decode(latents / self.scale + self.shift).sample
        return images.float()

    def _scaled(self, latents: Tensor) -> Tensor:
        return (latents - self.shift) * self.scale


def encode_all(autoencoder: Autoencoder | None, images: Tensor) -> Encoded:
    """x_0 of images `[N, C, H, W]` in [-1, 1], encoded in small batches; the images themselves where there is no autoencoder."""
    if autoencoder is None:
        return Encoded(images, None)
    parts = in_parts(autoencoder.encode, images, ENCODED_IMAGES)
    stds = [part.std for part in parts if part.std is not None]
    return Encoded(torch.cat([part.mean for part in parts]), torch.cat(stds) if stds else None)
