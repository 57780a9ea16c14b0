"""What a run needs, looked at before it starts: no trial should fail late for a reason that could be seen early."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from fewshot_ray.data.images import UnreadableImageError, decode
from fewshot_ray.data.places import pictures
from fewshot_ray.errors import UserError
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.parameters import tune
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import compose, preset_values, with_values
from fewshot_ray.trial.evaluation import Instruments, check_evaluation
from fewshot_ray.trial.finished import TestSplit
from fewshot_ray.trial.materials import Materials

CPU = torch.device("cpu")


def preset_materials(document: Document, file: FileSpec) -> Materials:
    """What the sweep's first trial is made of; nothing is loaded yet."""
    spec = compose(with_values(document, preset_values(document)))
    return Materials(spec, Folder(file.storage) / file.name / "cache", CPU)


def check_materials(document: Document, materials: Materials) -> None:
    """Model, images, splits, the networks of the metrics and what is trained: loaded and fitted to each other.

    Raises UserError. Writes nothing, but weights that a library downloads into its own cache.
    """
    spec, config = materials.spec, materials.spec.file.evaluate
    backbone = materials.source_backbone
    check_evaluation(config, materials.folds)
    _check_forward(backbone)
    _check_source_images(materials)
    if spec.file.target.test is not None:
        TestSplit(spec, materials.cache, CPU)
    instruments = Instruments(config, backbone, CPU)
    if instruments.extractor is not None:
        instruments.extractor.features(materials.shots.images[:1])
    if config.guidance_scale != 1 and not backbone.class_names:
        raise UserError(
            f"evaluate.guidance_scale: {config.guidance_scale:g} given, but source.model has no classes to guide to; leave it out"
        )
    draws = max(config.samples, config.grid_images) > 0
    if draws and config.sampler_steps > backbone.schedule.timesteps:
        raise UserError(
            f"evaluate.sampler_steps: {config.sampler_steps} given, but the model has {backbone.schedule.timesteps} timesteps; "
            "no more would be right"
        )
    _check_params(document, materials)
    for fold in materials.folds:
        materials.labels(fold.holdout)
    for method in spec.methods.values():
        method.check(backbone)


@torch.no_grad()
def _check_forward(backbone: Backbone) -> None:
    """The network takes a picture of the size and channels its configuration names, and gives one of the same shape."""
    shape = (1, *backbone.shape)
    wanted = "x".join(str(side) for side in shape[1:])
    labels = None if backbone.null_label is None else torch.zeros(1, dtype=torch.long)
    try:
        output = backbone.predict(backbone.network, torch.zeros(shape), torch.zeros(1, dtype=torch.long), labels)
    except RuntimeError as error:
        raise UserError(
            f"source.model: the network can't take the {wanted} images of its configuration ({' '.join(str(error).split())[:200]}); "
            "a sample_size that can be halved at every level would be right"
        ) from error
    if output.shape != shape:
        raise UserError(
            f"source.model: of {wanted} images the network makes {'x'.join(map(str, output.shape[1:]))}; the same would be right"
        )


def _check_source_images(materials: Materials) -> None:
    """The first picture only: the source's may be many, and not every method reads them."""
    source = materials.spec.file.source
    place = source.images
    if place is None or place == "generated":
        needy = [name for name, config in materials.spec.methods.items() if config.prepares]
        if not source.pretrained and needy:
            raise UserError(
                f"source.images: method.{needy[0]} needs them, and a model from scratch can't generate any; a place would be right"
            )
        return
    first = next(pictures(place), None)
    if first is None:
        raise UserError(f"source.images: {place} holds no pictures; at least one PNG, JPEG or WebP file is right")
    try:
        decode(first)
    except UnreadableImageError as error:
        raise UserError(f"source.images: {first.name} at {place} cannot be read ({error}); whole pictures are right") from error


def _check_params(document: Document, materials: Materials) -> None:
    """Every way of `train.params` at the ends of its ranges fits the model."""
    tried: list[tuple[str, Any]] = []
    for tree in endpoint_trees(document.tree):
        spec = compose(replace(document, tree=tree))
        if (spec.params, spec.params_config) not in tried:
            tried.append((spec.params, spec.params_config))
            tune(materials.student_backbone().network, spec.params, spec.params_config, seed=derived_seed(spec.seed, "params"))
