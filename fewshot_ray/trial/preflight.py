"""Checks before a run, so that no trial fails late for a reason that can be found early."""

from __future__ import annotations

import torch

from fewshot_ray.metrics.limits import Counts, remarks
from fewshot_ray.metrics.protocols import find_protocol, unmet
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import compose, preset_values, with_values
from fewshot_ray.trial.evaluation import Instruments, check_evaluation
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.finished import TestSplit
from fewshot_ray.trial.materials import Materials

CPU = torch.device("cpu")


def preset_materials(document: Document, file: FileSpec) -> Materials:
    """Model and images of the sweep's first trial, which are loaded when first used."""
    spec = compose(with_values(document, preset_values(document)))
    return materials_of(spec, Folder(file.storage) / file.name / "cache", CPU)


def check_materials(document: Document, materials: Materials) -> list[str]:
    """Load model, images, splits and the networks of the metrics, and check that they fit each other and the settings.

    Returns warnings of a line each on metrics that the numbers of images make meaningless, and on what the protocol demands.
    Raises UserError. Writes nothing except weights that a library downloads into its own cache.
    """
    spec, config = materials.spec, materials.spec.file.evaluate
    check_evaluation(config, materials.folds)
    if spec.file.target.test is not None:
        TestSplit(spec, materials.cache, CPU)
    instruments = Instruments(config, channels=materials.channels, size=materials.size, device=CPU)
    loaded = instruments.networks | ({"features": instruments.extractor} if instruments.extractor is not None else {})
    dimensions = {need: extractor.features(materials.shots.images[:1]).shape[1] for need, extractor in loaded.items()}
    materials.check(document)
    fewest = min(len(fold.holdout) for fold in materials.folds)
    counts = Counts(config.samples, fewest, max(len(fold.train) for fold in materials.folds), dimensions)
    extractor = instruments.extractor
    lacking = unmet(find_protocol(config.protocol), samples=config.final_samples, extractor=None if extractor is None else extractor.id)
    return [f"evaluate.metrics: {line}" for line in remarks(config.metrics, counts)] + [f"evaluate.protocol: {line}" for line in lacking]
