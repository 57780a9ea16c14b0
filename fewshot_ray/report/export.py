"""Exports a sweep's result as a diffusers pipeline with a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fewshot_ray
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.report.export_folder import CARD, export_folder
from fewshot_ray.report.model_card import ModelCard, model_card
from fewshot_ray.search.against_source import source_lines
from fewshot_ray.search.confirmation import confirmation_lines
from fewshot_ray.search.leaderboard import LeaderboardRow, leaderboard
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord
from fewshot_ray.search.winner import trial_tree
from fewshot_ray.spec.document import Document, to_yaml
from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.storage import is_remote
from fewshot_ray.training.group import Group
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.compose import PLAIN, TrialSpec, compose, effective_tree
from fewshot_ray.trial.evaluation import Evaluator, Instruments
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.finished import load_finished

CPU = torch.device("cpu")


def trial_spec(folder: SweepFolder, record: TrialRecord) -> TrialSpec:
    """The spec of a trial, as it ran."""
    tree = trial_tree(folder, record.id)
    refit_steps = record.best_step if record.kind == "refit" else None
    return compose(Document(tree, f"{folder.trial(record.id).url}/spec.yaml"), seed=record.seed, refit_steps=refit_steps)


def export_trial(folder: SweepFolder, file: FileSpec, record: TrialRecord, out: Path, *, overwrite: bool = False) -> None:
    """Write the trial's best averaged weights to `out` as a pipeline that `DiffusionPipeline.from_pretrained` loads.

    Adaptors are merged into the weights where possible; a network that diffusers doesn't have is written with the code that loads it
    (`trust_remote_code=True`). For a cross-fitted trial it is the first fold's model. `out` is written atomically. Raises UserError, also
    where `out` has content, unless that is an earlier export and `overwrite` is given.
    """
    with export_folder(out, overwrite=overwrite) as staged:
        spec = trial_spec(folder, record)
        assert record.best_step is not None
        finished = load_finished(spec, folder.trial(record.id), record.best_step, cache=folder.folder / "cache", device=CPU)
        code = finished.candidate.save(staged)
        _write_card(folder, file, record, finished.shots, staged, out.name, candidate=finished.candidate, code=code)


def _write_card(
    folder: SweepFolder,
    file: FileSpec,
    record: TrialRecord,
    shots: Sequence[str],
    staged: Path,
    name: str,
    *,
    candidate: Candidate,
    code: str | None,
) -> None:
    spec = trial_spec(folder, record)
    selected = record if record.kind != "refit" else folder.record(record.origin)
    assert selected is not None
    assert record.best_step is not None
    steps = folder.grid_steps(record.id)
    picture = None
    if steps:
        picture = "samples.png"
        (staged / picture).write_bytes(folder.grid(record.id, record.best_step if record.best_step in steps else steps[-1]))
    model = spec.file.source.model
    rows = leaderboard(folder, file.search)
    call = candidate.pipeline_call(spec.file.evaluate)
    card = ModelCard(
        name=name,
        source_model=spec.weights or "none: trained from scratch",
        trial_id=record.id,
        methods=[method for method in spec.methods if method != PLAIN],
        spec_yaml=to_yaml(effective_tree(spec)),
        seed=spec.seed,
        steps=record.best_step,
        shot_hashes=shots,
        metrics=selected.values or {},
        source_metrics=_source_metrics(rows, selected),
        against_source=source_lines(rows, file.search) if any(row.won and row.trial.id == selected.id for row in rows) else [],
        directions={name: metric.direction for name, metric in METRICS.items()},
        protocol=_protocol(trial_spec(folder, selected), folder),
        metrics_from=_metrics_from(record, selected, spec),
        source_is_on_hub=model is not None and not is_remote(model) and not Path(model).exists(),
        source_revision=spec.file.source.revision,
        own_code=code,
        call_arguments=call.arguments,
        call_remark=call.remark,
        class_names=candidate.class_names,
        confirmation=confirmation_lines(rows, file.search),
        version=fewshot_ray.__version__,
        picture=picture,
    )
    (staged / CARD).write_text(model_card(card))


def _source_metrics(rows: Sequence[LeaderboardRow], selected: TrialRecord) -> Mapping[str, float]:
    """The source's values of the metrics that a trial has."""
    source = next((row.values for row in rows if row.trial.kind == "source"), {})
    return {name: value for name, value in source.items() if name in (selected.values or {})}


def _metrics_from(record: TrialRecord, selected: TrialRecord, spec: TrialSpec) -> str:
    if selected is not record:
        return f"the folds of {selected.id}, before the refit"
    chosen = "the evaluation that the step was chosen by"
    if isinstance(spec.file.target.holdout, CrossFit):
        return f"{chosen}: means over {spec.file.target.holdout.crossfit} folds, of which this model is the first"
    return chosen


def _protocol(spec: TrialSpec, folder: SweepFolder) -> dict[str, Any]:
    materials = materials_of(spec, folder.folder / "cache", CPU)
    config, fold, group = spec.file.evaluate, materials.folds[0], Group()
    instruments = Instruments(config, channels=materials.channels, size=materials.size, device=CPU)
    own = materials.own_metrics(config, fold, instruments, group)
    evaluator = Evaluator(config, fold, instruments, own, seed=spec.file.seed, device=CPU, group=group)
    return dict(evaluator.protocol(config.samples))
