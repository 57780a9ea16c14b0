"""A noise-aware binary classifier over x_t: the p_phi(y | x_t) of ANT's similarity guidance."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn


class NoiseAwareClassifier(nn.Module):
    """Logit of `y = target` for a noised image: residual blocks conditioned on t that halve the resolution down to 4 pixels."""

    def __init__(self, channels: int, size: tuple[int, int], width: int = 32) -> None:
        super().__init__()
        self.embed_frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embed = TimestepEmbedding(width, 4 * width)
        self.conv_in = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList()
        current, pixels = width, min(size)
        while True:
            wider = min(2 * current, 8 * width)
            self.blocks.append(ResnetBlock2D(in_channels=current, out_channels=wider, temb_channels=4 * width, groups=8, eps=1e-5))
            current = wider
            if pixels <= 4:
                break
            pixels //= 2
        self.norm = nn.GroupNorm(8, current)
        self.head = nn.Linear(current, 1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits `[B]` for x_t `[B, C, H, W]` and t `[B]`."""
        embedding = self.embed(self.embed_frequencies(t))
        hidden = self.conv_in(x_t)
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, embedding)
            if index + 1 < len(self.blocks):
                hidden = F.avg_pool2d(hidden, 2)
        pooled = F.silu(self.norm(hidden)).mean(dim=(2, 3))
        logits: Tensor = self.head(pooled)[:, 0]
        return logits
