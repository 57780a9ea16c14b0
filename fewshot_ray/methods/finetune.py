"""Plain fine-tuning: the control every method is compared with."""

from __future__ import annotations

from fewshot_ray.methods.registry import Ingredients, MethodConfig, Part, register


class FinetuneConfig(MethodConfig):
    """No settings: everything is under `train`."""


@register("finetune", FinetuneConfig, families=("diffusion", "gan"))
def make_finetune(config: FinetuneConfig, ingredients: Ingredients) -> Part:
    """No terms: the denoising loss alone."""
    return Part()
