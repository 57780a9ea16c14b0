"""Images from noise: DDIM or DPM-Solver++ over a backbone's own schedule."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone

Sampler = Literal["ddim", "dpm++"]


def make_sampler(backbone: Backbone, sampler: Sampler) -> Any:
    """The diffusers scheduler for `sampler`, with the backbone's betas and prediction type.

    Its timesteps end at T - 1 ("trailing", Lin et al. 2024), where the noise the sampling starts from belongs.
    """
    config = {**backbone.scheduler.config, "timestep_spacing": "trailing"}
    if sampler == "ddim":
        return DDIMScheduler.from_config(config)
    return DPMSolverMultistepScheduler.from_config({**config, "algorithm_type": "dpmsolver++"})


@torch.no_grad()
def sample(backbone: Backbone, network: nn.Module, noise: Tensor, *, sampler: Sampler, steps: int, batch_images: int = 256) -> Tensor:
    """Images uint8 `[N, C, H, W]` from `noise` `[N, C, H, W]` (standard normal), deterministic given the noise.

    DDIM (Song et al. 2021, eta 0) recomputes eps from the clipped x_0: without that, a model whose x_0_hat leaves [-1, 1]
    at high noise gives muddy, dark images. Raises UserError for more steps than the model has timesteps.
    """
    if steps > backbone.schedule.timesteps:
        raise UserError(
            f"evaluate.sampler_steps: {steps} given, but the model has {backbone.schedule.timesteps} timesteps; no more would be right"
        )
    if len(noise) == 0:  # more workers than samples
        return from_model_range(noise)
    scheduler = make_sampler(backbone, sampler)
    was_training = network.training
    network.eval()
    images = [_denoise(backbone, network, part, scheduler, steps) for part in noise.split(batch_images)]
    network.train(was_training)
    return torch.cat(images)


def _denoise(backbone: Backbone, network: nn.Module, noise: Tensor, scheduler: Any, steps: int) -> Tensor:
    scheduler.set_timesteps(steps, device=noise.device)
    x_t = noise * scheduler.init_noise_sigma
    extra = {"use_clipped_model_output": True} if isinstance(scheduler, DDIMScheduler) else {}
    for t in scheduler.timesteps:
        prediction = backbone.predict(network, x_t, t.expand(x_t.shape[0]))
        x_t = scheduler.step(prediction, t, x_t, **extra).prev_sample
    return from_model_range(x_t)
