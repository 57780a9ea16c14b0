"""What is measured: sizes of networks and batches, and methods that train together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewshot_ray.methods import METHODS
from fewshot_ray.methods.registry import MethodConfig


@dataclass(frozen=True)
class Size:
    """What a run is measured at."""

    batch: int
    noise_steps: int
    channels: int
    pixels: int
    """The pixel model's side."""
    unet: tuple[int, ...]
    latents: int
    """The latent model's side."""
    latent_unet: tuple[int, ...]
    autoencoder: tuple[int, ...]
    layers: int = 1
    groups: int = 16
    transformer: tuple[int, int] = (2, 16)
    """The DiT's layers, and the width of its 4 heads."""


QUICK = Size(3, 2, 1, 8, (8, 16), 4, (8, 16), (8, 8), groups=4)
COMPILED = Size(4, 2, 3, 16, (32, 64), 8, (32, 64), (16, 16))
SIZES = {
    "cpu": Size(3, 3, 3, 64, (32, 64, 128, 320), 32, (64, 128, 256), (32, 64, 64)),
    "cuda": Size(32, 10, 3, 64, (128, 256, 384, 512), 32, (192, 384, 576), (64, 128, 256), layers=2, groups=32, transformer=(12, 72)),
}


@dataclass(frozen=True)
class Case:
    """Methods that train together."""

    name: str
    methods: Mapping[str, Mapping[str, Any]]

    def configs(self, size: Size, encoder_weights: str | None) -> dict[str, MethodConfig]:
        """Their typed settings."""
        run: dict[str, dict[str, Any]] = {"ant": {"noise_steps": size.noise_steps}, "sadm": {"encoder_weights": encoder_weights}}
        return {name: METHODS[name].config(**{**run.get(name, {}), **settings}) for name, settings in self.methods.items()}


ADVERSARIAL = {"warmup_steps": 0}
EACH = (
    Case("finetune", {"finetune": {}}),
    Case("ant", {"ant": {}}),
    Case("sdft", {"sdft": {}}),
    Case("ddpm_pa", {"ddpm_pa": {}}),
    Case("sadm", {"sadm": {}}),
)
"""For every way to choose the trained parameters."""
MORE = (
    Case("ant source", {"ant": {"inner_network": "source"}}),
    Case("sadm adversarial", {"sadm": ADVERSARIAL}),
    Case("ant sdft", {"ant": {}, "sdft": {}}),
    Case("ant sdft ddpm_pa sadm", {"ant": {}, "sdft": {}, "ddpm_pa": {}, "sadm": ADVERSARIAL}),
)
"""For `full` alone: what they add does not depend on it."""
