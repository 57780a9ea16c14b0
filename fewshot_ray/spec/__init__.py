"""A run's file: its reader, its ranges, its typed sections and its errors. It knows no method."""

from fewshot_ray.spec.document import Document, parse_document, read_document, substitute, to_yaml, value_at
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range
from fewshot_ray.spec.sections import (
    AshaSpec,
    ConfirmSpec,
    CrossFit,
    EmaSpec,
    EvaluateSpec,
    FileSpec,
    ResourcesSpec,
    SchedulerSpec,
    SearchSpec,
    Section,
    SourceSpec,
    TargetSpec,
    TrainSpec,
    parse_constraint,
)
from fewshot_ray.spec.validate import endpoint_trees, file_spec, load

__all__ = [
    "AshaSpec",
    "Choice",
    "ConfirmSpec",
    "CrossFit",
    "Document",
    "EmaSpec",
    "EvaluateSpec",
    "FileSpec",
    "FloatRange",
    "IntRange",
    "Range",
    "ResourcesSpec",
    "SchedulerSpec",
    "SearchSpec",
    "Section",
    "SourceSpec",
    "TargetSpec",
    "TrainSpec",
    "endpoint_trees",
    "file_spec",
    "load",
    "parse_constraint",
    "parse_document",
    "read_document",
    "substitute",
    "to_yaml",
    "value_at",
]
