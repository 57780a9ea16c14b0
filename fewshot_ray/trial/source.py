"""The source model as it is, measured as the trials are: what they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.metrics.suite import METRICS, components
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.drawing import draw
from fewshot_ray.trial.evaluation import Evaluator, Instruments
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.materials import Materials
from fewshot_ray.trial.over_folds import OverFolds


def drawn_by_source(materials: Materials) -> Tensor | None:
    """The source model's images from the noise of the trials, uint8 `[N, C, H, W]` on the CPU, as many as are measured; drawn once.

    None where no image is drawn, and for a source with random weights.
    """
    spec = materials.spec
    config = spec.file.evaluate
    measured = any(METRICS[name].of_samples for name in components(config.metrics))
    count = max(config.grid_images, config.samples if measured else 0)
    if count == 0 or not spec.file.source.pretrained:
        return None
    depends_on = {
        **materials.source_key,
        "sampling": [config.sampler, config.sampler_steps, config.guidance_scale],
        "count": count,
        "seed": spec.file.seed,
        "device": materials.device.type,
        "version": 1,
    }

    def compute() -> dict[str, Tensor]:
        return {"images": draw(materials.source_candidate(), count, config, spec.file.seed)}

    return read(Stage("source-images", depends_on, compute), materials.cache)["images"]


def measure_source(spec: TrialSpec, folder: Folder, cache: Folder, device: torch.device) -> OverFolds:
    """Measure the source on the folds of the trials, and write samples and losses below `folder` as of step 0. Raises UserError."""
    materials, config = materials_of(spec, cache, device), spec.file.evaluate
    instruments = Instruments(config, channels=materials.channels, size=materials.size, device=device, cache=cache)
    candidate, images, measured = materials.source_candidate(), drawn_by_source(materials), []
    for index, fold in enumerate(materials.folds):
        own = materials.own_metrics(config, fold, instruments, Group())
        evaluator = Evaluator(config, fold, instruments, own, seed=spec.file.seed, device=device, group=Group())
        measured.append(evaluator.measure(candidate, samples=config.samples, grid=index == 0, drawn=images))
    found = OverFolds(measured, None if images is None else images[: config.grid_images])
    found.write(folder, 0, config)
    return found
