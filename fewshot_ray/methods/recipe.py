"""What the recipes of all GANs share: their settings' type, and how the discriminator's images are augmented."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from fewshot_ray.methods.augment import Ada, AdaConfig, Augmentation, DiffAugment, DiffAugmentConfig


class RecipeConfig(BaseModel):
    """How a GAN is trained: the part of `train` that an architecture has for itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    diffaugment: DiffAugmentConfig | None = None
    """DiffAugment on what the discriminator sees; none where not given."""
    ada: AdaConfig | None = None
    """ADA on what the discriminator sees; none where not given."""

    def augmentation(self, device: torch.device) -> Augmentation | None:
        """Of what the discriminator sees."""
        if self.ada is not None:
            return Ada(self.ada, device=device)
        return None if self.diffaugment is None else DiffAugment(self.diffaugment)
