"""Checks before a run, so that no trial fails late for a reason that can be found early."""

from __future__ import annotations

import torch

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


def check_materials(document: Document, materials: Materials) -> None:
    """Load model, images, splits and the networks of the metrics, and check that they fit each other and the settings.

    Raises UserError. Writes nothing except weights that a library downloads into its own cache.
    """
    spec, config = materials.spec, materials.spec.file.evaluate
    check_evaluation(config, materials.folds)
    if spec.file.target.test is not None:
        TestSplit(spec, materials.cache, CPU)
    instruments = Instruments(config, channels=materials.channels, size=materials.size, device=CPU)
    for extractor in {id(one): one for one in (instruments.extractor, *instruments.networks.values()) if one is not None}.values():
        extractor.features(materials.shots.images[:1])
    materials.check(document)
