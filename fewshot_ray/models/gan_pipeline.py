"""A GAN as a pipeline: this file, and the networks' own beside their weights (torch and diffusers only), load an exported model."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

MEAN_LATENTS = 4096
"""Number of latents whose mean style is truncation's centre."""


class GanPipeline(DiffusionPipeline):
    """`pipeline(num_images, generator=torch.Generator().manual_seed(0)).images`.

    An image is a function of its latent: the generator's stored noise is used. The discriminator is saved too, for further training.
    """

    def __init__(self, generator: Any, discriminator: Any) -> None:
        super().__init__()
        self.register_modules(generator=generator, discriminator=discriminator)

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        generator: torch.Generator | None = None,
        *,
        latents: Tensor | None = None,
        truncation: float = 1.0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Images as PIL's, as an array `[N, H, W, C]` in [0, 1] (`output_type="np"`) or a tensor `[N, C, H, W]` in [0, 1] ("pt").

        `latents` `[N, latent_dim]` replace `num_images` and `generator`; `truncation` below 1 interpolates styles towards their mean,
        for networks that have styles. Raises ValueError for another.
        """
        network = self.components["generator"]
        if latents is None:
            device = generator.device if generator is not None else network.device
            latents = torch.randn((num_images, network.latent_dim), generator=generator, device=device)
        images = network(latents.to(network.device)) if truncation == 1 else self._truncated(latents.to(network.device), truncation)
        pixels = ((images.clamp(-1, 1) + 1) / 2).cpu()
        if output_type == "pt":
            shown: Any = pixels
        else:
            array = pixels.permute(0, 2, 3, 1).float().numpy()
            shown = array if output_type == "np" else self.numpy_to_pil(array)
        return ImagePipelineOutput(images=shown) if return_dict else (shown,)

    def _truncated(self, z: Tensor, truncation: float) -> Tensor:
        network = self.components["generator"]
        if not hasattr(network, "mapping"):
            raise ValueError(f"truncation is {truncation:g}, but {type(network).__name__} has no styles to truncate; 1 is right")
        drawn = torch.randn((MEAN_LATENTS, network.latent_dim), generator=torch.Generator().manual_seed(0)).to(z.device)
        mean = network.mapping(drawn).mean(dim=0)
        images: Tensor = network.synthesis(network.styles(mean + truncation * (network.mapping(z) - mean))).image
        return images
