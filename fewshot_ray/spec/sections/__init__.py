"""The sections of a run's file: their fields, defaults and bounds, a file a section."""

from fewshot_ray.spec.sections.evaluate import EvaluateSpec
from fewshot_ray.spec.sections.file import FileSpec
from fewshot_ray.spec.sections.resources import ResourcesSpec
from fewshot_ray.spec.sections.search import (
    AshaSpec,
    BudgetSpec,
    ConfirmSpec,
    CostSpec,
    RaceSpec,
    SchedulerSpec,
    SearchSpec,
    parse_constraint,
)
from fewshot_ray.spec.sections.section import Section
from fewshot_ray.spec.sections.source import SourceSpec
from fewshot_ray.spec.sections.target import CrossFit, TargetSpec
from fewshot_ray.spec.sections.train import EmaSpec, TrainSpec

__all__ = [
    "AshaSpec",
    "BudgetSpec",
    "ConfirmSpec",
    "CostSpec",
    "CrossFit",
    "EmaSpec",
    "EvaluateSpec",
    "FileSpec",
    "RaceSpec",
    "ResourcesSpec",
    "SchedulerSpec",
    "SearchSpec",
    "Section",
    "SourceSpec",
    "TargetSpec",
    "TrainSpec",
    "parse_constraint",
]
