"""How often a step runs each of its parts, counted by hand from the papers' losses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from fewshot_ray.methods.ant import AntConfig
from fewshot_ray.methods.ddpm_pa import DdpmPaConfig
from fewshot_ray.methods.registry import MethodConfig
from fewshot_ray.methods.sadm import SadmConfig
from fewshot_ray.methods.sdft import SdftConfig

Passes = Counter[str]


def passes(configs: Mapping[str, MethodConfig], *, latent: bool) -> Passes:
    """How often a step runs each part, counted by hand."""
    count = Passes({"forward": 1, "backward to weights": 1, "update": 1})
    for config in configs.values():
        if isinstance(config, AntConfig):
            count += ant_passes(config)
        elif isinstance(config, SdftConfig):
            aux = int(config.lambda_aux > 0)
            count += {"teacher forward": int(config.lambda_distill > 0) + aux, "forward": aux, "backward to weights": aux}
        elif isinstance(config, DdpmPaConfig):
            count += {"teacher forward": 1}
        elif isinstance(config, SadmConfig):
            count += sadm_passes(config, latent=latent)
    return count


def ant_passes(config: AntConfig) -> Passes:
    """J ascent steps on the noise, through a graph that gives no weight a gradient; one guidance step through the classifier."""
    teacher = "teacher " if config.inner_network == "source" else ""
    ascent = {f"{teacher}forward{' with graph' if teacher else ''}": config.noise_steps, f"{teacher}backward to input": config.noise_steps}
    guided = int(config.guidance > 0)
    return Passes({**ascent, "classifier forward": guided, "classifier backward to input": guided})


def sadm_passes(config: SadmConfig, *, latent: bool) -> Passes:
    """Psi of the real images needs no graph; an adversarial step runs both sides once more, for Psi's weights.

    Of latents the real images are decoded once. The generated ones are decoded again for the denoiser: kept from Psi's phase, the
    decoder's graph would be held beside both of Psi's.
    """
    count = Passes({"psi forward without graph": 1, "psi forward": 1, "psi backward to input": 1})
    if latent:
        count += {"decode without graph": 1, "decode": 1, "decode backward to input": 1}
    if config.adversarial(0):
        count += {"psi forward": 2, "psi backward to weights": 2, "psi update": 1}
        count += {"decode without graph": int(latent)}
    return count
