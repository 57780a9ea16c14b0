"""What the recipes of all GANs share: their settings' type, and how the discriminator's images are augmented."""

from __future__ import annotations

import torch

from fewshot_ray.methods.augment import Ada, AdaConfig, Augmentation, DiffAugment, DiffAugmentConfig
from fewshot_ray.spec.sections import Section


class RecipeConfig(Section):
    """How a GAN is trained: the part of `train` that an architecture has for itself."""

    diffaugment: DiffAugmentConfig | None = None
    """DiffAugment on what the discriminator sees; none where not given."""
    ada: AdaConfig | None = None
    """ADA on what the discriminator sees; none where not given."""

    def augmentation(self, device: torch.device) -> Augmentation | None:
        """Of what the discriminator sees."""
        if self.ada is not None:
            return Ada(self.ada, device=device)
        return None if self.diffaugment is None else DiffAugment(self.diffaugment)
