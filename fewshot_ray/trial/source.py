"""The source model as it is, measured as the trials are: what they are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.trial.compose import TrialSpec
from fewshot_ray.trial.evaluation import Evaluator, Instruments
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.materials import Materials
from fewshot_ray.trial.over_folds import OverFolds


def source_grid_stage(materials: Materials, evaluator: Evaluator, drawn: Tensor | None = None) -> Stage | None:
    """The stage that draws the source model's images from the noise of the trials' pictures; `drawn`: where they are known already.

    None without such pictures, and for a source with random weights.
    """
    spec = materials.spec
    config = spec.file.evaluate
    if config.grid_images == 0 or not spec.file.source.pretrained:
        return None
    depends_on = {
        **materials.source_key,
        "sampling": [config.sampler, config.sampler_steps, config.guidance_scale],
        "count": config.grid_images,
        "seed": spec.file.seed,
        "device": materials.device.type,
        "version": 1,
    }

    def compute() -> dict[str, Tensor]:
        if drawn is not None:
            return {"images": drawn[: config.grid_images]}
        alone = Evaluator(
            config, evaluator.fold, evaluator.instruments, evaluator.own, seed=spec.file.seed, device=materials.device, group=Group.alone()
        )
        return {"images": alone.draw_samples(materials.source_candidate(), config.grid_images)}

    return Stage("source-grid", depends_on, compute)


def measure_source(spec: TrialSpec, folder: Folder, cache: Folder, device: torch.device) -> OverFolds:
    """Measure the source on the folds of the trials, and write samples and losses below `folder` as of step 0. Raises UserError."""
    materials, config = materials_of(spec, cache, device), spec.file.evaluate
    instruments = Instruments(config, channels=materials.channels, size=materials.size, device=device, cache=cache)
    candidate, measured, grid = materials.source_candidate(), [], None
    for index, fold in enumerate(materials.folds):
        own = materials.own_metrics(config, fold, instruments, Group())
        evaluator = Evaluator(config, fold, instruments, own, seed=spec.file.seed, device=device, group=Group())
        measured.append(evaluator.measure(candidate, samples=config.samples, grid=index == 0))
        if index == 0 and (stage := source_grid_stage(materials, evaluator, measured[0].samples)) is not None:
            grid = read(stage, cache)["images"]
    found = OverFolds(measured, grid)
    found.write(folder, 0, config)
    return found
