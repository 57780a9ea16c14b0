"""`fewshot-ray check`: everything that can go wrong before training, and what training will cost."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from fewshot_ray.data.inspection import inspect_images
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.spec.document import Document, ranges, read_document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import TrialSpec, absolute_places, check_document, compose, preset_values, with_values
from fewshot_ray.trial.materials import Materials, pick_device, warnings
from fewshot_ray.trial.trial import Trial

TIMED_STEPS = 3


def check_file(path: Path, console: Console) -> None:
    """Raise UserError at the first thing that would stop the run; print findings, warnings and the plan."""
    document, file = check_document(absolute_places(read_document(path)))
    spec = compose(with_values(document, preset_values(document)))
    materials = Materials(spec, Folder(file.storage) / file.name / "cache", pick_device(0))
    console.print(f"[bold]model[/]  {file.source.model or 'from scratch'}: {_describe(materials)}", highlight=False)
    for finding in inspect_images(file.target.images, materials.source_backbone.size):
        console.print(f"[yellow]image[/]  {finding.name}: {finding.message}", highlight=False)
    folds = materials.folds
    console.print(
        f"[bold]images[/] {len(materials.shots)} shots; held out: " + ", ".join(f"{len(fold.holdout)} ({fold.name})" for fold in folds),
        highlight=False,
    )
    for line in warnings(spec, materials.source_backbone):
        console.print(f"[yellow]warning[/] {line}", highlight=False)
    _check_storage(file)
    _print_plan(document, file, spec, console)


def _describe(materials: Materials) -> str:
    backbone = materials.source_backbone
    parameters = sum(parameter.numel() for parameter in backbone.unet.parameters())
    return (
        f"{backbone.channels} x {backbone.size[0]} x {backbone.size[1]}, {parameters / 1e6:.2f} M parameters, "
        f"{backbone.prediction_type} prediction, T = {backbone.schedule.timesteps}"
    )


def _check_storage(file: FileSpec) -> None:
    """Write and remove a small file. Raises UserError."""
    storage = Folder(file.storage)
    name = f".fewshot-ray-check-{derived_seed(time.time_ns())}"
    storage.write_text(name, "")
    storage.remove(name)


def _print_plan(document: Document, file: FileSpec, spec: TrialSpec, console: Console) -> None:
    found = ranges(document.tree)
    for path, range_ in found.items():
        console.print(f"[bold]range[/]  {path}: {range_.describe()}", highlight=False)
    confirm = file.search.confirm
    reruns = 2 * len(confirm.seeds) * confirm.top if confirm else 0
    step_sec, checkpoint_bytes, folds = _time_steps(spec)
    evaluations = -(-spec.file.train.steps // spec.file.evaluate.every)
    longest = (file.search.trials + reruns) * spec.file.train.steps * step_sec
    console.print(
        f"[bold]plan[/]   {file.search.trials} trials + {reruns} reruns, {spec.file.train.steps} steps each in {folds} fold(s), "
        f"{evaluations} evaluations a trial; {file.resources.workers} worker(s) a trial",
        highlight=False,
    )
    console.print(
        f"[bold]cost[/]   at most {_duration(longest)} of training on one worker like this machine "
        f"({step_sec * 1000:.0f} ms a step, the preset's), evaluations and early stopping not counted; "
        f"disk at most {(file.search.trials + reruns) * 3 * checkpoint_bytes / 1e6:.0f} MB",
        highlight=False,
    )


def _time_steps(spec: TrialSpec) -> tuple[float, int, int]:
    """Seconds a step over all folds (the least of a few), and the bytes a checkpoint takes."""
    torch.set_num_threads(max(1, int(spec.file.resources.cpus_per_worker)))
    device = pick_device(spec.file.resources.gpus_per_worker) if torch.cuda.is_available() else torch.device("cpu")
    with tempfile.TemporaryDirectory() as scratch:
        trial = Trial(spec, Folder(scratch) / "trial", Folder(scratch) / "cache", device=device)
        seconds = []
        for step in range(1, TIMED_STEPS + 1):
            started = time.perf_counter()
            for training in trial.trainings:
                training.advance(step)
            seconds.append(time.perf_counter() - started)
        trained = sum(parameter.numel() for training in trial.trainings for parameter in training.method.trained().values())
    return min(seconds), trained * 4 * 4, len(trial.trainings)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
