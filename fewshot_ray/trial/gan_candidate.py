"""Evaluation, sampling and export of a GAN."""

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
from fewshot_ray.models.memory import in_parts
from fewshot_ray.models.pipeline import PipelineCall
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.trial.candidate import STRIP_COLUMNS, STRIP_ROWS, Candidate

IMAGES_AT_ONCE = 32


class GanCandidate(Candidate):
    """A generator in eval mode, where an image is a function of its latent alone."""

    def __init__(self, gan: Gan) -> None:
        self.gan = gan
        self.channels, self.size = gan.channels, gan.size
        self.device = next(gan.generator.parameters()).device
        self.noise_shape = (gan.latent_dim,)

    def images(self, noise: Tensor, numbers: Sequence[int], config: EvaluateSpec) -> Tensor:
        """Draw with one pass of the generator; `numbers` and `config` have no effect."""
        return self.of_codes(self.codes(noise))

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """Latents z -> codes `[N, latent_dim]` in the space where they are interpolated (StyleGAN2: W, FastGAN: Z)."""
        return self.gan.codes(z)

    @torch.no_grad()
    def of_codes(self, codes: Tensor) -> Tensor:
        """Codes -> images uint8 `[N, C, H, W]`, by the generator in eval mode."""
        was_training = self.gan.generator.training
        self.gan.generator.eval()
        images = torch.cat(in_parts(lambda rows: from_model_range(self.gan.make(rows).image), codes, IMAGES_AT_ONCE))
        self.gan.generator.train(was_training)
        return images

    def strip(self, seed: int) -> Tensor | None:
        """Each row goes from one random code to another in equal steps."""
        share = torch.linspace(0, 1, STRIP_COLUMNS, device=self.device)[None, :, None]
        ends = [
            torch.randn((STRIP_ROWS, *self.noise_shape), generator=torch.Generator().manual_seed(derived_seed(seed, "strip", end)))
            for end in ("start", "end")
        ]
        first, last = (self.codes(z.to(self.device))[:, None] for z in ends)
        return self.of_codes((first + share * (last - first)).flatten(0, 1))

    def save(self, folder: Path) -> str | None:
        """Write a pipeline with generator and discriminator; returns the name of its code file."""
        return save_gan(self.gan, folder)

    def pipeline_call(self, config: EvaluateSpec) -> PipelineCall:
        """A call without settings, since one pass has none."""
        return PipelineCall("num_images=16", "")

    def evaluations(self, config: EvaluateSpec) -> int:
        """One pass per image."""
        return 1

    def forward(self, images: int) -> None:
        """Generate images from zero latents."""
        self.of_codes(self.codes(torch.zeros((images, *self.noise_shape), device=self.device)))

    @torch.no_grad()
    def check_finite(self) -> None:
        """Check one generated image."""
        z = torch.randn((1, *self.noise_shape), generator=torch.Generator().manual_seed(0)).to(self.device)
        if not self.gan.make(self.gan.codes(z)).image.isfinite().all():
            raise UserError("source.gan: the generator's output for noise isn't finite; undamaged weights would be right")
