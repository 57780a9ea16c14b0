"""A model as it is measured, sampled and handed on, whatever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fewshot_ray.models.pipeline import PipelineCall
from fewshot_ray.spec.sections import EvaluateSpec

STRIP_ROWS, STRIP_COLUMNS = 4, 8


class Candidate(ABC):
    """Draws images from noise, and can be written as a pipeline."""

    channels: int
    size: tuple[int, int]
    device: torch.device
    noise_shape: tuple[int, ...]
    """Of the standard normal noise that an image is drawn from."""
    class_names: Sequence[str] = ()

    @abstractmethod
    def images(self, noise: Tensor, numbers: Sequence[int], config: EvaluateSpec) -> Tensor:
        """uint8 `[N, C, H, W]` from `noise` `[N, *noise_shape]`; `numbers` are the images', by which those of classes take turns."""

    def strip(self, seed: int) -> Tensor | None:
        """Images uint8 `[rows * STRIP_COLUMNS, C, H, W]` along lines through the latent space, a line a row; None without one."""
        return None

    @abstractmethod
    def save(self, folder: Path) -> str | None:
        """Write the pipeline into an empty folder; the file in it with the code that loads it, where diffusers hasn't got it."""

    @abstractmethod
    def pipeline_call(self, config: EvaluateSpec) -> PipelineCall:
        """How the pipeline that `save` writes is called, beside the samples that `config` measures."""

    @abstractmethod
    def evaluations(self, config: EvaluateSpec) -> int:
        """Passes through the network that an image takes."""

    @abstractmethod
    def forward(self, images: int) -> None:
        """One such pass, to be timed."""

    @abstractmethod
    def check_finite(self) -> None:
        """Raise UserError where of noise the network makes what are no finite numbers."""


class OwnMetrics(Protocol):
    """What a family of models is measured by besides the metrics of samples."""

    def __call__(self, candidate: Candidate) -> Mapping[str, float]:
        """By name; the same noise for every candidate of the sweep."""
        ...

    def protocol(self) -> Mapping[str, str | int | float]:
        """For the stamp of every value."""
        ...
