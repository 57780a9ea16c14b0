"""Images from noise: DDIM or DPM-Solver++ over a backbone's own schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor, nn

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.models.autoencoder import ENCODED_IMAGES
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.memory import in_parts

Sampler = Literal["ddim", "dpm++"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""The native prediction `[B, C, H, W]` for x_t `[B, C, H, W]` and t `[B]`."""


def trailing_timesteps(timesteps: int, steps: int) -> list[int]:
    """`t_i = round(T (steps - i) / steps) - 1`, i = 0 .. steps - 1 ("trailing", Lin et al. 2024, Table 2), for 1 <= steps <= T.

    They begin at T - 1, the timestep of the noise that sampling starts from, decrease strictly and end at 0 or above. In whole
    numbers, halves upwards: in floating point some step counts get a further timestep, of -1.
    """
    return [(2 * timesteps * (steps - i) + steps) // (2 * steps) - 1 for i in range(steps)]


@torch.no_grad()
def sample(
    backbone: Backbone,
    network: nn.Module,
    noise: Tensor,
    *,
    sampler: Sampler,
    steps: int,
    labels: Tensor | None = None,
    guidance_scale: float = 1.0,
    batch_images: int = 256,
) -> Tensor:
    """Images uint8 `[N, C, H, W]` from `noise` `[N, *backbone.shape]` (standard normal), deterministic given the noise.

    `labels` `[N]` are for a model with classes, and `guidance_scale` its classifier-free guidance (1: none).
    At most `batch_images` are drawn at once, fewer where a GPU's memory runs out. Raises UserError for more steps than the model has
    timesteps.
    """
    if steps > backbone.schedule.timesteps:
        raise UserError(
            f"evaluate.sampler_steps: {steps} given, but the model has {backbone.schedule.timesteps} timesteps; no more would be right"
        )
    if len(noise) == 0:  # more workers than samples
        return torch.empty((0, backbone.channels, *backbone.size), dtype=torch.uint8, device=noise.device)
    was_training = network.training
    network.eval()
    decoded_images = batch_images if backbone.autoencoder is None else ENCODED_IMAGES

    def drawn(rows: Tensor) -> Tensor:
        of_rows = None if labels is None else labels[rows]

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return backbone.predict_guided(network, x_t, t, of_rows, guidance_scale)

        x_0 = denoise(backbone, predict, noise[rows], sampler=sampler, steps=steps)
        return torch.cat(in_parts(lambda part: from_model_range(backbone.decode(part)), x_0, decoded_images))

    images = in_parts(drawn, torch.arange(len(noise), device=noise.device), batch_images)
    network.train(was_training)
    return torch.cat(images)


def denoise(backbone: Backbone, predict: Predict, noise: Tensor, *, sampler: Sampler, steps: int) -> Tensor:
    """x_0 `[B, C, H, W]` of `noise` `[B, C, H, W]` at T - 1, along `trailing_timesteps`."""
    timesteps = trailing_timesteps(backbone.schedule.timesteps, steps)
    return _ddim(backbone, predict, noise, timesteps) if sampler == "ddim" else _dpm_solver(backbone, predict, noise, timesteps)


def _ddim(backbone: Backbone, predict: Predict, x_t: Tensor, timesteps: Sequence[int]) -> Tensor:
    """`x_s = sqrt(alpha_bar_s) x_0_hat + sqrt(1 - alpha_bar_s) eps_hat` (Song et al. 2021, Eq. 12, sigma = 0) from each t to the next, s.

    The last step ends at x_0_hat. eps_hat is recomputed from the bounded x_0_hat: without that, a model whose x_0_hat leaves
    [-1, 1] at high noise gives muddy, dark images.
    """
    x_0_hat = x_t
    for index, number in enumerate(timesteps):
        t = torch.full((len(x_t),), number, device=x_t.device)
        x_0_hat = _bounded(backbone, backbone.to_x_0(predict(x_t, t), x_t, t), clip=True)
        if index + 1 < len(timesteps):
            eps_hat = backbone.schedule.eps(x_0_hat, x_t, t)
            x_t = backbone.schedule.add_noise(x_0_hat, eps_hat, torch.full_like(t, timesteps[index + 1]))
    return x_0_hat


def _dpm_solver(backbone: Backbone, predict: Predict, x_t: Tensor, timesteps: Sequence[int]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) by diffusers, which is given x_0_hat, our timesteps and our alpha_bar."""
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=backbone.schedule.timesteps, prediction_type="sample", algorithm_type="dpmsolver++"
    )
    solver.alphas_cumprod = backbone.schedule.alphas_cumprod
    solver.set_timesteps(timesteps=list(timesteps), device=x_t.device)
    for number in timesteps:
        t = torch.full((len(x_t),), number, device=x_t.device)
        x_0_hat = _bounded(backbone, backbone.to_x_0(predict(x_t, t), x_t, t), clip=False)
        x_t = solver.step(x_0_hat, number, x_t).prev_sample
    return x_t


def _bounded(backbone: Backbone, x_0_hat: Tensor, *, clip: bool) -> Tensor:
    """x_0_hat bounded as the model's scheduler says: thresholded (Saharia et al. 2022, Section 2.3), clipped to `clip`, or unchanged.

    Latents have no bounds and are never changed.
    """
    config = backbone.scheduler.config
    if backbone.autoencoder is not None:
        return x_0_hat
    if config.thresholding:
        ratio, most = config.dynamic_thresholding_ratio, config.sample_max_value
        rows = [torch.quantile(row, ratio) for row in x_0_hat.flatten(1).abs()]  # at once it takes no more than 2^24 numbers
        bound = torch.stack(rows).clamp(1, most).view(-1, 1, 1, 1)
        return x_0_hat.clamp(-bound, bound) / bound
    return x_0_hat.clamp(-config.clip_sample_range, config.clip_sample_range) if clip and config.clip_sample else x_0_hat
