"""The interface of a generator that is evaluated, sampled and exported, independent of its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fewshot_ray.metrics.noise_levels import band_values, weights
from fewshot_ray.models.pipeline import PipelineCall
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.spec.sections.evaluate import HOLDOUT_LOSS

STRIP_ROWS, STRIP_COLUMNS = 4, 8


class Candidate(ABC):
    """Draws images from noise, and can be written as a pipeline."""

    channels: int
    size: tuple[int, int]
    device: torch.device
    noise_shape: tuple[int, ...]
    """Shape of the standard normal noise for one image."""
    class_names: Sequence[str] = ()
    is_source = False
    """Whether it is the model that training starts from, as it is."""

    @abstractmethod
    def images(self, noise: Tensor, numbers: Sequence[int], config: EvaluateSpec) -> Tensor:
        """uint8 `[N, C, H, W]` from `noise` `[N, *noise_shape]`; with classes, an image's number modulo their count is its class."""

    def strip(self, seed: int) -> Tensor | None:
        """Images uint8 `[STRIP_ROWS * STRIP_COLUMNS, C, H, W]`: each row interpolates between two latents; None without a latent space."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> str | None:
        """Write the pipeline into an empty folder; returns the name of the code file in it that loads it, None where diffusers can."""

    @abstractmethod
    def pipeline_call(self, config: EvaluateSpec) -> PipelineCall:
        """The call of the saved pipeline that draws samples as `config` does."""

    @abstractmethod
    def evaluations(self, config: EvaluateSpec) -> int:
        """Network evaluations per image."""

    @abstractmethod
    def forward(self, images: int) -> None:
        """One network evaluation of a batch of so many images, for timing."""

    @abstractmethod
    def check_finite(self) -> None:
        """Raise UserError where the network's output for noise isn't finite, as with damaged weights that are finite but far too large."""


@dataclass(frozen=True)
class HoldoutLosses:
    """The losses of fixed noisings (image, t, eps) of held-out images, `[P]` each, in the same order for all candidates of a sweep."""

    loss: Tensor
    """float32: the mean square over an image's numbers, in the model's own prediction space."""
    image: Tensor
    """int32: the index of the held-out image."""
    t: Tensor
    """int32: the timestep, in [0, T)."""
    log_snr: Tensor
    """float64: the logarithm of the signal-to-noise ratio at t."""
    source: Tensor | None = None
    """float32: the source model's losses at the same noisings; None where the source isn't pre-trained."""

    @property
    def mean(self) -> float:
        """The mean over all noisings, `holdout_loss`."""
        return float(self.loss.double().mean())

    def bands(self) -> Mapping[str, float]:
        """The metrics by noise level, those that are defined."""
        return band_values(self.loss, self.log_snr, self.source)

    def by_image(self, metric: str = HOLDOUT_LOSS) -> list[float]:
        """Each held-out image's share in a metric that is linear in the losses, to seven digits: what paired tests compare.

        Of `holdout_loss` it is the mean loss of the image over its noisings; of the metrics by noise level the sum over its noisings of
        weight times loss, times the number of images, so that the mean over the images is the metric. Empty where that is undefined.
        """
        images = int(self.image.max()) + 1
        if metric == HOLDOUT_LOSS:
            total = torch.zeros(images, dtype=torch.float64).index_add_(0, self.image, self.loss.double())
            return _rounded(total / self.image.bincount(minlength=images))
        weight = weights(metric, self.log_snr, self.source)
        if weight is None:
            return []
        return _rounded(images * torch.zeros(images, dtype=torch.float64).index_add_(0, self.image, weight * self.loss.double()))

    def tensors(self) -> dict[str, Tensor]:
        """What is written of them, by name."""
        found = {"loss": self.loss, "image": self.image, "t": self.t, "log_snr": self.log_snr}
        return found if self.source is None else {**found, "source": self.source}

    @classmethod
    def joined(cls, folds: Sequence[HoldoutLosses]) -> HoldoutLosses:
        """Those of all folds one after the other; the images are numbered on."""
        firsts = [0]
        for fold in folds:
            firsts.append(firsts[-1] + int(fold.image.max()) + 1)
        images = [fold.image + first for fold, first in zip(folds, firsts, strict=False)]
        loss, t, log_snr = (torch.cat([getattr(fold, name) for fold in folds]) for name in ("loss", "t", "log_snr"))
        source = [fold.source for fold in folds if fold.source is not None]
        return cls(loss, torch.cat(images), t, log_snr, torch.cat(source) if len(source) == len(folds) else None)


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.7g}") for value in values.tolist()]


@dataclass(frozen=True)
class OwnMeasured:
    """What `OwnMetrics` finds."""

    metrics: Mapping[str, float]
    losses: HoldoutLosses | None = None
    """What the metrics of held-out losses are computed from, where any is among the metrics."""


class OwnMetrics(Protocol):
    """The metrics of a family of models besides those of samples."""

    def __call__(self, candidate: Candidate) -> OwnMeasured:
        """Measure a candidate; the noise is the same for all candidates of a sweep."""
        ...

    def protocol(self) -> Mapping[str, str | int | float]:
        """Settings that the values depend on; they are stored with every value."""
        ...
