"""What each metric of samples is computed from: the metrics by name as functions of features or of LPIPS."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot_ray.metrics.alignment import alignment, alignment_lpips
from fewshot_ray.metrics.diversity import (
    euclidean_distances,
    intra_cluster_diversity,
    mean_pairwise_distance,
    unit_features,
    vendi_score,
)
from fewshot_ray.metrics.fidelity import clip_distance, frechet_distance, inception_score, kernel_distance, relative_distance
from fewshot_ray.metrics.latent_space import modes
from fewshot_ray.metrics.likelihood import FeatureLikelihood, feature_likelihood
from fewshot_ray.metrics.manifold import Manifold, manifold
from fewshot_ray.metrics.memorisation import memorisation_informed_distance, memorised_share
from fewshot_ray.metrics.perceptual import Embedded, PerceptualDistance
from fewshot_ray.metrics.protocols import CLEAN, MetricProtocol

NEIGHBOURS = 3
"""k of precision, recall, density and coverage."""
PAIRWISE_LPIPS_SAMPLES = 200
"""Pairwise LPIPS uses this many of the samples, the first: 19,900 pairs."""

Values = dict[str, float]


@dataclass
class FeatureSets:
    """Features [N, D] of samples, and where they are read those of the images trained on and of real ones never trained on."""

    generated: Tensor
    training_of: Callable[[], Tensor]
    reference_of: Callable[[], Tensor]
    conventions: MetricProtocol = CLEAN
    source_of: Callable[[], Tensor] | None = None

    @property
    def training(self) -> Tensor:
        """[N_train, D]."""
        return self.training_of()

    @property
    def reference(self) -> Tensor:
        """[N_real, D]."""
        return self.reference_of()

    @cached_property
    def source(self) -> Tensor:
        """The source model's samples from the same noise, [N, D]."""
        assert self.source_of is not None
        return self.source_of()

    @property
    def frechet_reference(self) -> Tensor:
        """What `fd` compares with: the images trained on too where the protocol has them in it."""
        return torch.cat([self.reference, self.training]) if self.conventions.shots_in_reference else self.reference

    @cached_property
    def unit(self) -> Tensor:
        """The samples', L2-normalised."""
        return unit_features(self.generated)

    @cached_property
    def to_training(self) -> Tensor:
        """[N, N_train], between L2-normalised features."""
        return euclidean_distances(self.unit, unit_features(self.training))

    @cached_property
    def manifold(self) -> Manifold:
        """Precision, recall, density, coverage."""
        return manifold(self.generated, self.reference, k=NEIGHBOURS)

    @cached_property
    def likelihood(self) -> FeatureLikelihood:
        """FLD and its gap."""
        return feature_likelihood(self.generated, self.training, self.reference)


@dataclass
class PerceptualSets:
    """Samples and the images trained on, by LPIPS; an image's map is computed once, as far as memory goes."""

    perceptual: PerceptualDistance
    samples: Tensor
    training: Tensor
    conventions: MetricProtocol = CLEAN
    source_of: Callable[[], Tensor] | None = None

    @cached_property
    def source(self) -> Tensor:
        """The source model's samples from the same noise."""
        assert self.source_of is not None
        return self.source_of()

    @cached_property
    def embedded(self) -> Embedded:
        """The samples."""
        return self.perceptual.embedded(self.samples)

    @cached_property
    def to_training(self) -> Tensor:
        """[N, N_train]."""
        training = self.perceptual.embedded(self.training)
        return self.embedded.distances(training, torch.arange(len(self.samples)), torch.arange(len(self.training)))


def _fd(name: str) -> Callable[[FeatureSets], Values]:
    return lambda sets: {name: frechet_distance(sets.generated, sets.reference)}


def _kid(sets: FeatureSets) -> Values:
    kid = kernel_distance(sets.generated, sets.reference)
    return {"kid": kid.value} | ({"kid_stderr": kid.stderr} if math.isfinite(kid.stderr) else {})


def _inception_score(sets: FeatureSets) -> Values:
    score = inception_score(sets.generated)
    return {"inception_score": score.value, "inception_score_std": score.std}


def _intra_distance(sets: FeatureSets) -> Values:
    def pairwise(members: Tensor) -> Tensor:
        return euclidean_distances(sets.unit[members], sets.unit[members])

    intra = intra_cluster_diversity(sets.to_training, pairwise, cap=sets.conventions.intra_cap)
    return {"intra_distance": intra.value, "occupancy": intra.occupancy}


def _memorisation(sets: FeatureSets) -> Values:
    found = memorised_share(sets.generated, sets.training, sets.reference)
    return {"memorisation": found.share, "memorisation_ratio": found.median_ratio}


def _mifid(sets: FeatureSets) -> Values:
    return {"mifid": memorisation_informed_distance(sets.generated, sets.training, sets.reference)}


FEATURE_VALUES: Mapping[str, Callable[[FeatureSets], Values]] = {
    "fd": lambda sets: {"fd": frechet_distance(sets.generated, sets.frechet_reference)},
    "sfid": _fd("sfid"),
    "fd_dinov2": _fd("fd_dinov2"),
    "kid": _kid,
    "relative_distance": lambda sets: {"relative_distance": relative_distance(sets.generated, sets.source, sets.reference)},
    "alignment": lambda sets: {"alignment": alignment(sets.source, sets.generated)},
    "cmmd": lambda sets: {"cmmd": clip_distance(sets.generated, sets.reference)},
    "inception_score": _inception_score,
    "precision": lambda sets: {"precision": sets.manifold.precision},
    "recall": lambda sets: {"recall": sets.manifold.recall},
    "density": lambda sets: {"density": sets.manifold.density},
    "coverage": lambda sets: {"coverage": sets.manifold.coverage},
    "vendi": lambda sets: {"vendi": vendi_score(sets.generated)},
    "pairwise_distance": lambda sets: {"pairwise_distance": mean_pairwise_distance(sets.unit)},
    "intra_distance": _intra_distance,
    "modes": lambda sets: {"modes": modes(sets.to_training)},
    "memorisation": _memorisation,
    "mifid": _mifid,
    "fld": lambda sets: {"fld": sets.likelihood.divergence},
    "fld_gap": lambda sets: {"fld_gap": sets.likelihood.gap},
}


def _pairwise_lpips(sets: PerceptualSets) -> Values:
    n = min(len(sets.samples), PAIRWISE_LPIPS_SAMPLES)
    distances = sets.embedded.within(torch.arange(n)).double()
    return {"pairwise_lpips": float(distances.sum() - distances.diagonal().sum()) / (n * (n - 1))}


def _intra_lpips(sets: PerceptualSets) -> Values:
    intra = intra_cluster_diversity(sets.to_training, sets.embedded.within, cap=sets.conventions.intra_cap)
    return {"intra_lpips": intra.value, "occupancy_lpips": intra.occupancy}


PERCEPTUAL_VALUES: Mapping[str, Callable[[PerceptualSets], Values]] = {
    "pairwise_lpips": _pairwise_lpips,
    "intra_lpips": _intra_lpips,
    "alignment_lpips": lambda sets: {"alignment_lpips": alignment_lpips(sets.source, sets.samples, sets.perceptual)},
    "modes_lpips": lambda sets: {"modes_lpips": modes(sets.to_training)},
}
