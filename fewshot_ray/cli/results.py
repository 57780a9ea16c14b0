"""Selecting, evaluating and sampling the models of a finished sweep."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewshot_ray.cli.show import read_sweep
from fewshot_ray.errors import UserError, said_of
from fewshot_ray.metrics.stamp import stamp
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.report.export import trial_spec
from fewshot_ray.report.stamps import stamp_lines
from fewshot_ray.report.tables import format_metric
from fewshot_ray.search.inputs import changed_inputs, check_inputs
from fewshot_ray.search.leaderboard import leaderboard, tuned_plain
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord, read_spec
from fewshot_ray.search.winner import exported_trial
from fewshot_ray.spec.sections import CrossFit, EvaluateSpec, FileSpec
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.denoising import DiffusionCandidate
from fewshot_ray.trial.drawing import draw
from fewshot_ray.trial.families import pipeline_candidate
from fewshot_ray.trial.finished import TestSplit, load_folds
from fewshot_ray.trial.grid import grid_png
from fewshot_ray.trial.inputs import SOURCE_IMAGES
from fewshot_ray.trial.materials import pick_device

GRID = "grid.png"
CHOSEN_ON = "the winner was chosen on these images, so its values are better here than on others"
MARK = ("Software", "fewshot-ray sample")
"""Text in the PNG files that marks them as this command's."""


def chosen_trial(folder: SweepFolder, file: FileSpec, trial_id: str | None) -> TrialRecord:
    """The trial of that id, else the sweep's result. Raises UserError."""
    if trial_id is None:
        return exported_trial(folder, file)
    trials = [trial for trial in folder.trials() if trial.kind != "source"]
    record = next((trial for trial in trials if trial.id == trial_id), None)
    if record is None or record.best_step is None:
        known = [trial.id for trial in trials if trial.best_step is not None]
        right = f"one of {', '.join(known)} would be right" if known else "no trial has one; `fewshot-ray resume` goes on with the sweep"
        raise UserError(f"--trial {trial_id}: {'no such trial' if record is None else 'it has no result'}; {right}")
    return record


def inputs_for_evaluate(place: str) -> list[str]:
    """Warnings of inputs that couldn't be compared. Raises UserError where an input of the evaluation has changed since the sweep began."""
    folder = read_sweep(place)[0].folder
    return check_inputs(folder, read_spec(folder).tree, lambda one: one.field != SOURCE_IMAGES)


def inputs_for_export(folder: SweepFolder) -> list[str]:
    """Warnings of changed or unknown images. Raises UserError where the source model, which the export contains, has changed."""
    tree = read_spec(folder.folder).tree
    warnings = check_inputs(folder.folder, tree, lambda one: one.is_source)
    return warnings or changed_inputs(folder.folder, tree, lambda one: one.field in ("target.images", "target.holdout"))


def evaluate_sweep(place: str, trial_id: str | None, console: Console) -> dict[str, Any]:
    """Print the metrics of each model on the test images, and write them to `test.json`; returns its content."""
    folder, file = read_sweep(place)
    record = chosen_trial(folder, file, trial_id)
    gpus = file.resources.gpus
    device = pick_device(gpus if torch.cuda.is_available() else 0)
    split = TestSplit(trial_spec(folder, record), folder.folder / "cache", device)
    results = {"source model": split.measure_source()}
    for trial in compared_trials(folder, file, record):
        with console.status(Text(f"measuring {trial.id}")):
            results[_title(trial, file)] = _measure(split, folder, trial, device)
    found = {"metrics": results, "on": split.field, "protocol": split.protocol()}
    folder.folder.write_text("test.json", json.dumps(found, indent=2) + "\n")
    names = list(dict.fromkeys(name for metrics in results.values() for name in metrics))
    # Metrics down, models across: there are few models, and 80 characters hold them.
    table = Table("metric", *results, title=f"on {len(split.fold.holdout)} images of {split.place}")
    for name in names:
        table.add_row(name, *(format_metric(metrics.get(name)) for metrics in results.values()))
    console.print(table)
    for line in stamp_lines(stamp(name, split.protocol()) for name in names if name in METRICS):
        console.print(line, style="dim")
    for remark in split.remarks():
        print(f"warning: {remark}", file=sys.stderr)
    if split.is_chosen_on:
        console.print(f"{CHOSEN_ON}; target.test with others would be right")
    return found


def compared_trials(folder: SweepFolder, file: FileSpec, record: TrialRecord) -> list[TrialRecord]:
    """The trial and the best plain fine-tuning, of its own search where there is one; beside a refit also the trial that it repeats.

    A refit is trained on all shots, plain fine-tuning only on those of its folds; the repeated trial has as many as that.
    """
    origin = folder.record(record.origin) if record.kind == "refit" else None
    chosen = [record] if origin is None else [record, origin]
    rows = leaderboard(folder, file.search)
    tuned = tuned_plain(rows, file.search)
    plain = tuned.trial if tuned is not None else next((row.trial for row in rows if row.rank and row.trial.origin == "plain"), None)
    return chosen + ([plain] if plain is not None and plain.id not in [trial.id for trial in chosen] else [])


def _title(trial: TrialRecord, file: FileSpec) -> str:
    holdout = file.target.holdout
    of_folds = f", mean of {holdout.crossfit} folds" if isinstance(holdout, CrossFit) and trial.kind != "refit" else ""
    return f"{trial.id} ({trial.label}{of_folds})"


def _measure(split: TestSplit, folder: SweepFolder, trial: TrialRecord, device: torch.device) -> dict[str, float]:
    """Means of the metrics over the trial's models, one per fold."""
    assert trial.best_step is not None
    models = load_folds(trial_spec(folder, trial), folder.trial(trial.id), trial.best_step, cache=folder.folder / "cache", device=device)
    measured = [split.measure(model.candidate) for model in models]
    return {name: math.fsum(one[name] for one in measured) / len(measured) for name in measured[0] if all(name in one for one in measured)}


def sample_images(
    model: str, out: Path, *, number: int, seed: int, sampler: str, steps: int, guidance_scale: float, overwrite: bool = False
) -> None:
    """Write `number` PNG files and a grid. Raises UserError, also where `out` has content and `overwrite` isn't given."""
    if sampler not in ("ddim", "dpm++"):
        raise UserError(f"--sampler {sampler}: not known; ddim or dpm++ would be right")
    names = [f"{index:05d}.png" for index in range(number)]
    _check_samples_place(out, overwrite=overwrite)
    candidate = loaded_pipeline("MODEL", model, pick_device(1 if torch.cuda.is_available() else 0))
    if isinstance(candidate, DiffusionCandidate) and steps > candidate.backbone.schedule.timesteps:
        raise UserError(f"--steps {steps}: the model has {candidate.backbone.schedule.timesteps} timesteps; no more would be right")
    config = EvaluateSpec(sampler="ddim" if sampler == "ddim" else "dpm++", sampler_steps=steps, guidance_scale=guidance_scale)
    images = draw(candidate, number, config, seed)
    mark = PngInfo()
    mark.add_text(*MARK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, image in zip(names, images, strict=True):
            pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
            Image.fromarray(pixels).save(out / name, pnginfo=mark)
        (out / GRID).write_bytes(grid_png(images))
        for path in out.glob("[0-9]*.png"):
            if path.name not in names and _is_sample(path):
                path.unlink()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); a folder that you may write to would be right") from error


def _check_samples_place(out: Path, *, overwrite: bool) -> None:
    """Raise UserError where `out` is a file, or has content that may not be overwritten."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; a folder would be right")
    try:
        held = sorted(name for name in os.listdir(out) if not name.startswith(".")) if out.exists() else []
    except OSError as error:
        raise UserError(
            f"{out}: cannot be read ({error.strerror or error}); a folder that you may read and write would be right"
        ) from error
    if held and not overwrite:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise UserError(f"{out}: holds {held[0]}{more}; another folder, or --overwrite, would be right")


def _is_sample(path: Path) -> bool:
    """Whether this command wrote the file."""
    try:
        with Image.open(path) as image:
            return image.info.get(MARK[0]) == MARK[1]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # not a picture of this command
        return False


def loaded_pipeline(argument: str, model: str, device: torch.device) -> Candidate:
    """The pipeline's model. Errors name the argument, since there is no file with a `source` here."""
    try:
        candidate = pipeline_candidate(model, device)
    except UserError as error:
        raise said_of(argument, error) from error
    if candidate.channels not in (1, 3):
        raise UserError(f"{argument}: {model} has {candidate.channels} channels; 1 (grey) or 3 (RGB) would be right")
    return candidate
