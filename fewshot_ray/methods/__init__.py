"""The methods, a file each; a new one is entered here."""

from fewshot_ray.methods import ant, finetune, sdft
from fewshot_ray.methods.registry import METHODS

__all__ = ["METHODS", "ant", "finetune", "sdft"]
