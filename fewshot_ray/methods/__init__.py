"""The methods, a file each; a new one is entered here."""

from fewshot_ray.methods import ant, cdc, ddpm_pa, distance_gan, ewc, finetune, freezed, mixdl, msgan, ndiv, sadm, sdft
from fewshot_ray.methods.registry import METHODS

__all__ = ["METHODS", "ant", "cdc", "ddpm_pa", "distance_gan", "ewc", "finetune", "freezed", "mixdl", "msgan", "ndiv", "sadm", "sdft"]
