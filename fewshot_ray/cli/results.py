"""What is done with a finished sweep: choosing, measuring and sampling its models."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from fewshot_ray.cli.show import read_sweep
from fewshot_ray.errors import UserError
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import load_backbone
from fewshot_ray.report.export import trial_spec
from fewshot_ray.report.leaderboard import format_metric
from fewshot_ray.report.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.report.winner import exported_trial, ranked_trials
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.finished import TestSplit, load_finished
from fewshot_ray.trial.grid import grid_png

CPU = torch.device("cpu")


def chosen_trial(folder: SweepFolder, file: FileSpec, trial_id: str | None) -> TrialRecord:
    """The trial asked for, else the sweep's result. Raises UserError."""
    if trial_id is None:
        return exported_trial(folder, file)
    record = folder.record(trial_id)
    if record is None or record.best_step is None:
        known = ", ".join(trial.id for trial in folder.trials() if trial.best_step is not None)
        raise UserError(
            f"--trial {trial_id}: {'no such trial' if record is None else 'it has no result yet'}; one of {known} would be right"
        )
    return record


def evaluate_sweep(place: str, trial_id: str | None, console: Console) -> dict[str, dict[str, float]]:
    """Print and write (`test.json`) the metrics on the test images, model by model."""
    folder, file = read_sweep(place)
    record = chosen_trial(folder, file, trial_id)
    cache = folder.folder / "cache"
    split = TestSplit(trial_spec(folder, record), cache, CPU)
    results = {"source model": split.measure_source()}
    plain = next((trial for trial in ranked_trials(folder, file) if trial.origin == "plain" and trial.id != record.id), None)
    for trial in [record] + ([plain] if plain is not None else []):
        with console.status(f"measuring {trial.id}"):
            assert trial.best_step is not None
            finished = load_finished(trial_spec(folder, trial), folder.trial(trial.id), trial.best_step, cache=cache, device=CPU)
            results[f"{trial.id} ({trial.label})"] = split.measure(finished.backbone, finished.tuned.network)
    folder.folder.write_text("test.json", json.dumps({"metrics": results, "protocol": split.protocol()}, indent=2) + "\n")
    table = Table("model", *results["source model"], title=f"on {file.target.test}, {file.evaluate.final_samples} samples")
    for name, metrics in results.items():
        table.add_row(name, *(format_metric(value) for value in metrics.values()))
    console.print(table)
    return results


def sample_images(model: str, out: Path, *, number: int, seed: int, sampler: str, steps: int) -> None:
    """Write `number` PNG files and a grid. Raises UserError."""
    if sampler not in ("ddim", "dpm++"):
        raise UserError(f"--sampler {sampler}: not known; ddim or dpm++ would be right")
    backbone = load_backbone(model)
    shape = (backbone.channels, *backbone.size)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(derived_seed(seed, "samples", i))) for i in range(number)]
    images = sample(backbone, backbone.unet, torch.stack(noise), sampler="ddim" if sampler == "ddim" else "dpm++", steps=steps)
    out.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        pixels = image.permute(1, 2, 0).squeeze(-1).numpy()
        Image.fromarray(pixels).save(out / f"{index:05d}.png")
    (out / "grid.png").write_bytes(grid_png(images))
