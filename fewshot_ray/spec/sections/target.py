"""`target`: the few images, and what is held out of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fewshot_ray.spec.sections.section import Place, PositiveInt, Section


class CrossFit(Section):
    """Cross-fitting: every shot is held out once; a trial trains `crossfit` folds, and its metrics are their means."""

    crossfit: int = Field(ge=2)
    """Number of folds."""


class TargetSpec(Section):
    """The few images to adapt to, and the images that trials are evaluated on."""

    images: Place
    """Target images: a folder, zip, Parquet file or URL."""

    shots: PositiveInt | None = None
    """Number of images trained on, chosen by `split_seed`; all when not given."""

    split_seed: int = Field(default=0, ge=0)
    """Seed of all splits of the target images."""

    holdout: Place | PositiveInt | CrossFit = CrossFit(crossfit=5)
    """Held-out images: a place, a number of shots to hold out, or {crossfit: folds}."""

    labels: Literal["one", "folders"] | None = None
    """Classes of the images, for a class-conditional model: 'one' new class for all images, or one class per sub-folder."""

    test: Place | None = None
    """Images for `evaluate`; nothing is selected on them."""
