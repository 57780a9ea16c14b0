"""The settings that the recipes of all GANs share: how the discriminator's input is augmented."""

from __future__ import annotations

import torch

from fewshot_ray.methods.augment import Ada, AdaConfig, Augmentation, DiffAugment, DiffAugmentConfig
from fewshot_ray.spec.sections import Section


class RecipeConfig(Section):
    """How a GAN is trained: the part of `train` that depends on its architecture."""

    diffaugment: DiffAugmentConfig | None = None
    """DiffAugment of the discriminator's input; none when not given."""
    ada: AdaConfig | None = None
    """ADA of the discriminator's input; none when not given."""

    def augmentation(self, device: torch.device) -> Augmentation | None:
        """The augmentation of the discriminator's input; None for none."""
        if self.ada is not None:
            return Ada(self.ada, device=device)
        return None if self.diffaugment is None else DiffAugment(self.diffaugment)
