"""A GAN as it is measured, sampled and handed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.models.gan import Gan
from fewshot_ray.models.gan_source import save_gan
from fewshot_ray.models.pipeline import PipelineCall
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.trial.candidate import STRIP_COLUMNS, STRIP_ROWS, Candidate

IMAGES_AT_ONCE = 32


class GanCandidate(Candidate):
    """A generator, by the noise of its own: an image is a function of its latent."""

    def __init__(self, gan: Gan) -> None:
        self.gan = gan
        self.channels, self.size = gan.channels, gan.size
        self.device = next(gan.generator.parameters()).device
        self.noise_shape = (gan.latent_dim,)

    def images(self, noise: Tensor, numbers: Sequence[int], config: EvaluateSpec) -> Tensor:
        """One pass."""
        return self.of_codes(self.codes(noise))

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """`[N, latent_dim]` in the space that latents are interpolated in."""
        return self.gan.codes(z)

    @torch.no_grad()
    def of_codes(self, codes: Tensor) -> Tensor:
        """Images uint8 `[N, C, H, W]`."""
        was_training = self.gan.generator.training
        self.gan.generator.eval()
        images = torch.cat([from_model_range(self.gan.make(rows).image) for rows in codes.split(IMAGES_AT_ONCE)])
        self.gan.generator.train(was_training)
        return images

    def strip(self, seed: int) -> Tensor | None:
        """From one latent to another in equal steps."""
        share = torch.linspace(0, 1, STRIP_COLUMNS, device=self.device)[None, :, None]
        ends = [
            torch.randn((STRIP_ROWS, *self.noise_shape), generator=torch.Generator().manual_seed(derived_seed(seed, "strip", end)))
            for end in ("start", "end")
        ]
        first, last = (self.codes(z.to(self.device))[:, None] for z in ends)
        return self.of_codes((first + share * (last - first)).flatten(0, 1))

    def save(self, folder: Path) -> str | None:
        """Generator and discriminator."""
        return save_gan(self.gan, folder)

    def pipeline_call(self, config: EvaluateSpec) -> PipelineCall:
        """One pass draws as was measured."""
        return PipelineCall("num_images=16", "")

    def evaluations(self, config: EvaluateSpec) -> int:
        """One."""
        return 1

    def forward(self, images: int) -> None:
        """An image of each latent."""
        self.of_codes(self.codes(torch.zeros((images, *self.noise_shape), device=self.device)))

    @torch.no_grad()
    def check_finite(self) -> None:
        """Damaged weights may be finite, and far too large."""
        z = torch.randn((1, *self.noise_shape), generator=torch.Generator().manual_seed(0)).to(self.device)
        if not self.gan.make(self.gan.codes(z)).image.isfinite().all():
            raise UserError("source.gan: of noise the generator makes what are no finite numbers; whole weights would be right")
