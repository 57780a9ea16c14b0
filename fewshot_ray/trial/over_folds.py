"""What was measured of a trial's models, one a fold: metrics over all folds, and the files of it below the trial's folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from fewshot_ray.metrics.suite import METRICS, products
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.spec.sections.evaluate import BAND_METRICS
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import checkpoint_name, pack
from fewshot_ray.trial.candidate import STRIP_COLUMNS, HoldoutLosses
from fewshot_ray.trial.drift import drift
from fewshot_ray.trial.evaluation import Measured
from fewshot_ray.trial.grid import grid_png, strip_name


@dataclass(frozen=True)
class OverFolds:
    """The models of a trial's folds, measured; the samples of the first one are its picture."""

    measured: Sequence[Measured]
    source_grid: Tensor | None = None
    """The source model's images from the noise of the picture, uint8 `[N, C, H, W]`; None where they aren't known."""

    @cached_property
    def losses(self) -> HoldoutLosses | None:
        """The held-out losses of all folds, where they are measured."""
        found = [one.losses for one in self.measured if one.losses is not None]
        return HoldoutLosses.joined(found) if found else None

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Means over the folds, and products of these; metrics by noise level are of the losses of all folds, `drift` is of the picture."""
        names = [name for name in self.measured[0].metrics if all(name in one.metrics for one in self.measured)]
        found = {name: math.fsum(one.metrics[name] for one in self.measured) / len(self.measured) for name in names}
        if self.losses is not None:
            found |= self.losses.bands()
        found |= products(METRICS, found)
        samples = self.measured[0].samples
        if samples is not None and self.source_grid is not None:
            moved = drift(samples[: len(self.source_grid)], self.source_grid)
            found |= {} if moved is None else {"drift": moved}
        return found

    @property
    def image_losses(self) -> list[float]:
        """The held-out loss of each held-out image, fold by fold; empty where it isn't measured."""
        return [] if self.losses is None else self.losses.by_image()

    def by_image(self, objectives: Iterable[str]) -> dict[str, list[float]]:
        """The objectives by noise level, by held-out image."""
        if self.losses is None:
            return {}
        found = {name: self.losses.by_image(name) for name in objectives if name in BAND_METRICS}
        return {name: values for name, values in found.items() if values}

    def write(self, folder: Folder, step: int, config: EvaluateSpec) -> None:
        """Write samples and losses."""
        first = self.measured[0]
        write_samples(folder, step, config, first.samples, first.strip)
        if self.losses is not None:
            content = pack(self.losses.tensors(), {})["state.safetensors"]
            (folder / "losses").write_bytes(f"{checkpoint_name(step)}.safetensors", content)


def write_samples(folder: Folder, step: int, config: EvaluateSpec, samples: Tensor | None, strip: Tensor | None) -> None:
    """Write a trial's samples at a step, as far as `evaluate` says so, and interpolations through the latent space."""
    if samples is None:
        return
    place = folder / "samples"
    if config.grid_images > 0:
        place.write_bytes(f"{checkpoint_name(step)}.png", grid_png(samples[: config.grid_images]))
    if strip is not None:
        place.write_bytes(strip_name(step), grid_png(strip, columns=STRIP_COLUMNS))
    if config.keep_samples:
        place.write_bytes(f"{checkpoint_name(step)}.safetensors", pack({"images": samples}, {})["state.safetensors"])
