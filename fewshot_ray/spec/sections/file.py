"""A run's whole file."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from fewshot_ray.spec.sections.evaluate import EvaluateSpec
from fewshot_ray.spec.sections.resources import ResourcesSpec
from fewshot_ray.spec.sections.search import SearchSpec
from fewshot_ray.spec.sections.section import Place, Section
from fewshot_ray.spec.sections.source import SourceSpec
from fewshot_ray.spec.sections.target import TargetSpec
from fewshot_ray.spec.sections.train import TrainSpec
from fewshot_ray.spec.wording import show

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def _run_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{show(name)} is no name; up to 100 letters, digits, '.', '_' and '-', the first a letter or digit, are right")
    return name


def _method_settings(settings: Any) -> Any:
    if not (settings is None or settings == "search" or isinstance(settings, dict)):
        raise ValueError(f"{show(settings)} is given; a mapping of the method's settings, 'search' or nothing (its defaults) is right")
    return settings


class FileSpec(Section):
    """A run's whole file."""

    name: Annotated[str, AfterValidator(_run_name)]
    """Name of the run and of its folder in `storage`."""

    seed: int = Field(default=0, ge=0)
    """Seed of training and of the search."""

    source: SourceSpec
    """Where training starts."""

    target: TargetSpec
    """What to adapt to."""

    method: dict[str, Annotated[Any, AfterValidator(_method_settings)]]
    """Methods to combine, each with its settings, 'search' (the method's declared ranges) or nothing (its defaults)."""

    train: TrainSpec = TrainSpec()
    """Optimisation in each trial."""

    evaluate: EvaluateSpec = EvaluateSpec()
    """Evaluation of trials."""

    search: SearchSpec = SearchSpec()
    """Search over the ranges."""

    resources: ResourcesSpec = ResourcesSpec()
    """Hardware of a trial."""

    storage: Place = "runs"
    """Folder or URL in which each run gets a folder."""
