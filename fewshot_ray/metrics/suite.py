"""The metrics of an evaluation by name, all over the same samples, reference and extractor."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.diversity import euclidean_distances, intra_cluster_diversity, mean_pairwise_distance, unit_features
from fewshot_ray.metrics.extractors import Extractor, PerceptualDistance
from fewshot_ray.metrics.fidelity import frechet_distance, kernel_distance
from fewshot_ray.metrics.latent_space import modes
from fewshot_ray.metrics.manifold import manifold
from fewshot_ray.metrics.memorisation import memorised_share
from fewshot_ray.metrics.protocols import CLEAN, MetricProtocol

NEIGHBOURS = 3
"""k of precision, recall, density and coverage."""
PAIRWISE_LPIPS_SAMPLES = 200
"""Pairwise LPIPS uses this many of the samples, the first: 19,900 pairs."""


@dataclass(frozen=True)
class Metric:
    """Whether lower or higher is better, and what the value is computed from: held-out loss, an extractor's features, or LPIPS."""

    direction: Literal["min", "max"]
    needs: Literal["loss", "features", "perceptual"]
    real_images: int = 0
    """The least number of held-out images it is defined for."""
    family: Literal["diffusion", "gan"] | None = None
    """The family of models that it is defined for; None for all."""
    of_samples: bool = True
    """Whether it is computed from samples alone; if not, by the model's family."""


METRICS: Mapping[str, Metric] = {
    "holdout_loss": Metric("min", "loss", family="diffusion", of_samples=False),
    "loss_coarse": Metric("min", "loss", family="diffusion", of_samples=False),
    "loss_content": Metric("min", "loss", family="diffusion", of_samples=False),
    "loss_cleanup": Metric("min", "loss", family="diffusion", of_samples=False),
    "relative_coarse": Metric("min", "loss", family="diffusion", of_samples=False),
    "relative_content": Metric("min", "loss", family="diffusion", of_samples=False),
    "relative_cleanup": Metric("min", "loss", family="diffusion", of_samples=False),
    "relative_loss": Metric("min", "loss", family="diffusion", of_samples=False),
    "fd": Metric("min", "features", real_images=2),
    "kid": Metric("min", "features", real_images=2),
    "pairwise_distance": Metric("max", "features"),
    "intra_distance": Metric("max", "features"),
    "pairwise_lpips": Metric("max", "perceptual"),
    "intra_lpips": Metric("max", "perceptual"),
    "memorisation": Metric("min", "features", real_images=1),
    "precision": Metric("max", "features", real_images=NEIGHBOURS + 1),
    "recall": Metric("max", "features", real_images=NEIGHBOURS + 1),
    "density": Metric("max", "features", real_images=NEIGHBOURS + 1),
    "coverage": Metric("max", "features", real_images=NEIGHBOURS + 1),
    "modes": Metric("max", "features"),
    "modes_lpips": Metric("max", "perceptual"),
    "path_uniformity": Metric("min", "features", family="gan", of_samples=False),
    "ppl_uniformity": Metric("min", "perceptual", family="gan", of_samples=False),
}


def check_metrics(names: Iterable[str]) -> None:
    """Raises UserError, with the nearest name, where a name is not one of METRICS."""
    for name in names:
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
            raise UserError(f"evaluate.metrics: there is no {name!r}; {', '.join(METRICS)} are right (did you mean {nearest}?)")


def needed(names: Iterable[str]) -> set[str]:
    """What the metrics are computed from: some of "loss", "features", "perceptual"."""
    return {METRICS[name].needs for name in names}


class Suite:
    """Computes the sample metrics among `metrics` (the held-out loss needs no samples; the trial computes it).

    `training` and `reference` are uint8 [N, C, H, W]: the images trained on, and real ones never trained on.
    `features_of` replaces the extractor's pass over these two (by a cache).
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        training: Tensor,
        reference: Tensor,
        extractor: Extractor | None = None,
        perceptual: PerceptualDistance | None = None,
        features_of: Callable[[Tensor], Tensor] | None = None,
        conventions: MetricProtocol = CLEAN,
    ) -> None:
        check_metrics(metrics)
        self.metrics = tuple(metrics)
        self.training = training
        self.reference = reference
        self.real_images = len(reference)
        self._check_real_images()
        self.extractor = extractor
        self.perceptual = perceptual
        self.conventions = conventions
        if "perceptual" in needed(metrics) and perceptual is None:
            raise ValueError("LPIPS metrics are asked for without a perceptual distance; load_perceptual makes one")
        if "features" in needed(metrics) and extractor is None:
            raise ValueError("feature metrics are asked for without an extractor; load_extractor makes one")
        self._features_of = features_of or (extractor.features if extractor is not None else None)

    @cached_property
    def training_features(self) -> Tensor:
        """Features of the images trained on, float32 [N, D]; computed when first used."""
        assert self._features_of is not None
        return self._features_of(self.training)

    @cached_property
    def reference_features(self) -> Tensor:
        """Features of the real images never trained on, float32 [M, D]."""
        assert self._features_of is not None
        return self._features_of(self.reference)

    @cached_property
    def frechet_features(self) -> Tensor:
        """The reference of `fd`: with the images trained on where the protocol has them in it."""
        if not self.conventions.shots_in_reference:
            return self.reference_features
        return torch.cat([self.reference_features, self.training_features])

    def compute(self, samples: Tensor) -> dict[str, float]:
        """The value of each sample metric for samples uint8 [N, C, H, W], N >= 2.

        Beside them: `kid_stderr` with kid (left out where it is undefined, with two images in a set), and with intra_distance
        and intra_lpips `occupancy` and `occupancy_lpips`, the share of training images that are nearest to some sample.
        Raises UserError where the samples are too few.
        """
        values: dict[str, float] = {}
        self._check_samples(len(samples))
        of_samples = needed(name for name in self.metrics if METRICS[name].of_samples)
        if self.extractor is not None and "features" in of_samples:
            values |= self._feature_values(self.extractor.features(samples))
        if self.perceptual is not None and "perceptual" in of_samples:
            values |= self._perceptual_values(samples, self.perceptual)
        return values

    def protocol(self) -> dict[str, str | int]:
        """The measurement protocol stored with every value; the caller adds N_gen, the sampler, its steps and the seed."""
        stamp: dict[str, str | int] = {"protocol": self.conventions.name, "n_real": self.real_images, "n_train": len(self.training)}
        if {"intra_distance", "intra_lpips"} & set(self.metrics):
            stamp["intra_cap"] = self.conventions.intra_cap
        if "fd" in self.metrics and self.conventions.shots_in_reference:
            stamp["shots_in_reference"] = True
        if self.extractor is not None:
            stamp |= {"extractor": self.extractor.id, "extractor_weights": self.extractor.weights_hash, "resize": self.extractor.resize}
        if self.perceptual is not None:
            stamp |= {
                "perceptual": self.perceptual.id,
                "perceptual_weights": self.perceptual.weights_hash,
                "perceptual_resize": self.perceptual.resize,
            }
        return stamp

    def _feature_values(self, generated: Tensor) -> dict[str, float]:
        values: dict[str, float] = {}
        unit = unit_features(generated)
        if "fd" in self.metrics:
            values["fd"] = frechet_distance(generated, self.frechet_features)
        if "kid" in self.metrics:
            kid = kernel_distance(generated, self.reference_features)
            values["kid"] = kid.value
            if math.isfinite(kid.stderr):
                values["kid_stderr"] = kid.stderr
        if "pairwise_distance" in self.metrics:
            values["pairwise_distance"] = mean_pairwise_distance(unit)
        if "intra_distance" in self.metrics:
            to_train = euclidean_distances(unit, unit_features(self.training_features))
            intra = intra_cluster_diversity(
                to_train, lambda members: euclidean_distances(unit[members], unit[members]), cap=self.conventions.intra_cap
            )
            values |= {"intra_distance": intra.value, "occupancy": intra.occupancy}
        neighbours = {"precision", "recall", "density", "coverage"} & set(self.metrics)
        if neighbours:
            found = manifold(generated, self.reference_features, k=NEIGHBOURS)
            values |= {name: getattr(found, name) for name in self.metrics if name in neighbours}
        if "modes" in self.metrics:
            values["modes"] = modes(euclidean_distances(unit, unit_features(self.training_features)))
        if "memorisation" in self.metrics:
            values["memorisation"] = memorised_share(generated, self.training_features, self.reference_features).share
        return values

    def _perceptual_values(self, samples: Tensor, perceptual: PerceptualDistance) -> dict[str, float]:
        values: dict[str, float] = {}
        if "pairwise_lpips" in self.metrics:
            first = samples[:PAIRWISE_LPIPS_SAMPLES]
            distances = perceptual.matrix(first, first).double()
            values["pairwise_lpips"] = float(distances.sum() - distances.diagonal().sum()) / (len(first) * (len(first) - 1))
        if "modes_lpips" in self.metrics:
            values["modes_lpips"] = modes(perceptual.matrix(samples, self.training))
        if "intra_lpips" in self.metrics:
            to_train = perceptual.matrix(samples, self.training)
            intra = intra_cluster_diversity(
                to_train, lambda members: perceptual.matrix(samples[members], samples[members]), cap=self.conventions.intra_cap
            )
            values |= {"intra_lpips": intra.value, "occupancy_lpips": intra.occupancy}
        return values

    def _check_real_images(self) -> None:
        for name in self.metrics:
            least = METRICS[name].real_images
            if self.real_images < least:
                raise UserError(
                    f"evaluate.metrics: {name} over {self.real_images} held-out images; {least} or more are right (target.holdout)"
                )

    def _check_samples(self, samples: int) -> None:
        # One more sample than training images, so that some cluster has two samples.
        intra = {"intra_distance", "intra_lpips"} & set(self.metrics)
        neighbours = {"precision", "recall", "density", "coverage"} & set(self.metrics)
        least = max(2, len(self.training) + 1 if intra else 0, NEIGHBOURS + 1 if neighbours else 0)
        if samples < least:
            raise UserError(f"evaluate.samples: {samples} are too few for {', '.join(self.metrics)}; {least} or more are right")
