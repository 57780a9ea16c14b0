"""Checks that a pipeline's network was trained with DDPM's forward process, and reads its betas, from its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import (
    DDIMParallelScheduler,
    DDIMScheduler,
    DDPMParallelScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from fewshot_ray.errors import UserError
from fewshot_ray.models.configuration import MISFIT, check_sizes, first_line, quiet
from fewshot_ray.spec.wording import show

SCHEDULERS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        DDPMScheduler,
        DDPMParallelScheduler,
        DDIMScheduler,
        DDIMParallelScheduler,
        PNDMScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSinglestepScheduler,
        DEISMultistepScheduler,
        UniPCMultistepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
    )
}
"""Samplers of networks that are trained at integer t by `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`."""
OF_THIS_THEORY = {"use_flow_sigmas": False, "timestep_type": "discrete"}
"""The only accepted value of these settings; with others a scheduler is for flow matching or continuous time."""


def read_scheduler(config: Mapping[str, Any], named: Any, path: Path) -> DDPMScheduler:
    """The schedule of `scheduler_config.json`'s content at `path`, as a `DDPMScheduler`; `named` is the class in model_index.json.

    Where the file is silent the class's own defaults hold, that of model_index.json first, as in diffusers. Files from before
    prediction_type have predict_epsilon, which diffusers no longer reads. Raises UserError.
    """
    if config.get("predict_epsilon") is False:
        config = {"prediction_type": "sample", **config}
    names = [str(name) for name in (named, config.get("_class_name")) if name is not None]
    for name in names or ["scheduler without a _class_name"]:
        if name not in SCHEDULERS:
            raise UserError(
                f"source.model: {path} is of a {name[:100]}, which isn't supported (training uses DDPM's forward process); "
                f"one of {', '.join(SCHEDULERS)} would be right"
            )
    defaults = _defaults(SCHEDULERS[names[0]])
    settings = {key: config.get(key, defaults.get(key, default)) for key, default in _defaults(DDPMScheduler).items()}
    settings["variance_type"] = settings["variance_type"] or "fixed_small"
    try:
        for key, value in OF_THIS_THEORY.items():
            if (given := config.get(key, value)) != value:
                raise ValueError(f"{key} is {show(given)}, of models that aren't trained with DDPM's forward process")
        check_sizes(settings)
        with quiet():
            return DDPMScheduler(**settings)
    except MISFIT as error:
        raise UserError(f"source.model: {path} can't be used ({first_line(error)}); DDPMScheduler's would be right") from error


def _defaults(kind: type[Any]) -> dict[str, Any]:
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}
