"""Measures of generated images: fidelity, diversity, memorisation, in the features of a pluggable extractor."""

from fewshot_ray.metrics.extractors import EXTRACTORS, Extractor, load_extractor
from fewshot_ray.metrics.perceptual import PerceptualDistance, load_perceptual
from fewshot_ray.metrics.suite import METRICS, Metric, Suite, check_metrics, needed

__all__ = [
    "EXTRACTORS",
    "METRICS",
    "Extractor",
    "Metric",
    "PerceptualDistance",
    "Suite",
    "check_metrics",
    "load_extractor",
    "load_perceptual",
    "needed",
]
