"""Metrics of how evenly a GAN's images change along straight lines through its latent space (path uniformity)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.metrics.diversity import unit_features
from fewshot_ray.metrics.latent_space import path_uniformity
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.trial.candidate import Candidate, OwnMeasured
from fewshot_ray.trial.evaluation import Instruments
from fewshot_ray.trial.gan_candidate import GanCandidate

METRICS = {"path_uniformity": "path", "ppl_uniformity": "ppl"}
"""Name of each metric, and the prefix of the names of its further values."""


class LatentPaths:
    """`path_uniformity` with the extractor's features, `ppl_uniformity` with LPIPS: the paths' standard deviation, also mean and end.

    The latents depend on `seed` alone, so that differences between trials are paired.
    """

    def __init__(self, config: EvaluateSpec, instruments: Instruments, *, seed: int, device: torch.device) -> None:
        self.config = config
        self.instruments = instruments
        self.seed = seed
        self.device = device

    def __call__(self, candidate: Candidate) -> OwnMeasured:
        """The values of those metrics that `evaluate.metrics` has."""
        values: dict[str, float] = {}
        for name, prefix in METRICS.items():
            if name in self.config.metrics:
                values |= self.measured(candidate, name, prefix)
        return OwnMeasured(values)

    def measured(self, candidate: Candidate, name: str, prefix: str) -> dict[str, float]:
        """The three values of one metric: standard deviation, mean and end."""
        assert isinstance(candidate, GanCandidate)
        starts, ends = (candidate.codes(self.latents(candidate, end)) for end in ("start", "end"))
        found = path_uniformity(starts, ends, candidate.of_codes, self.distance(name))
        return {name: found.std, f"{prefix}_mean": found.mean, f"{prefix}_end": found.end}

    def distance(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The distance `[n]` of pairs of images uint8 `[n, C, H, W]`: LPIPS (a squared one), or the squared distance of unit features."""
        if name == "ppl_uniformity":
            perceptual = self.instruments.perceptual
            assert perceptual is not None
            return perceptual.distance
        extractor = self.instruments.extractor
        assert extractor is not None

        def squared(a: Tensor, b: Tensor) -> Tensor:
            return (unit_features(extractor.features(a)) - unit_features(extractor.features(b))).square().sum(dim=1)

        return squared

    def latents(self, candidate: Candidate, end: str) -> Tensor:
        """Latents `[paths, latent_dim]` at one end ("start" or "end") of the paths."""
        drawn = [
            torch.randn(candidate.noise_shape, generator=torch.Generator().manual_seed(derived_seed(self.seed, "paths", end, number)))
            for number in range(self.config.paths)
        ]
        return torch.stack(drawn).to(self.device)

    def protocol(self) -> dict[str, str | int | float]:
        """The number of paths."""
        return {"paths": self.config.paths} if METRICS.keys() & set(self.config.metrics) else {}
