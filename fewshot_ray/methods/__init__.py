"""The methods, a file each; a new one is entered here."""

from fewshot_ray.methods import ant, ddpm_pa, finetune, sadm, sdft
from fewshot_ray.methods.registry import METHODS

__all__ = ["METHODS", "ant", "ddpm_pa", "finetune", "sadm", "sdft"]
