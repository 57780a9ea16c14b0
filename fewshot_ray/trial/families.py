"""Chooses the family of models (diffusion or GAN) of a trial or pipeline."""

from __future__ import annotations

from pathlib import Path

import torch

from fewshot_ray.models.gan_source import load_gan
from fewshot_ray.models.source import GAN_PIPELINE, load_backbone, locate_pipeline, read_json
from fewshot_ray.storage import Folder
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.denoising import DiffusionCandidate
from fewshot_ray.trial.diffusion import DiffusionMaterials
from fewshot_ray.trial.gan import GanMaterials
from fewshot_ray.trial.gan_candidate import GanCandidate
from fewshot_ray.trial.materials import Materials


def materials_of(spec: TrialSpec, cache: Folder, device: torch.device) -> Materials:
    """The trial's model and images, which are loaded when first used."""
    family = DiffusionMaterials if spec.gan is None else GanMaterials
    return family(spec, cache, device)


def pipeline_candidate(place: str, device: torch.device) -> Candidate:
    """The model of a pipeline in a folder, on a hub or at a URL. Raises UserError."""
    folder = str(locate_pipeline(place))
    if read_json(Path(folder), "model_index.json").get("_class_name") == GAN_PIPELINE:
        return GanCandidate(load_gan(folder).to(device))
    backbone = load_backbone(folder).to(device)
    return DiffusionCandidate(backbone, backbone.network)
