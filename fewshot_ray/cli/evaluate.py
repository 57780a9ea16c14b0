"""`evaluate` of images and of pipelines, without a sweep: what was asked for, the table, the JSON and the strip of copies."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fewshot_ray.cli.results import evaluate_sweep, inputs_for_evaluate, loaded_pipeline
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.protocols import find_protocol
from fewshot_ray.metrics.stamp import Against
from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.models.source import EMBEDDED_MODELS
from fewshot_ray.report.stamps import stamp_lines
from fewshot_ray.report.tables import format_metric
from fewshot_ray.report.terminal import plain_console, telling
from fewshot_ray.search.sweep_folder import SPEC
from fewshot_ray.spec.places import without_column
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.storage import Folder, is_remote
from fewshot_ray.trial.candidate import Candidate
from fewshot_ray.trial.denoising import DiffusionCandidate
from fewshot_ray.trial.materials import pick_device
from fewshot_ray.trial.standalone import Judgement, Request, Value, judge
from fewshot_ray.writable import check_writable

Kind = Literal["sweep", "pipeline", "images"]
STDOUT = "-"
SHOWN_COPIES = 8
OPTIONS = {
    "evaluate.extractor_weights": "--extractor-weights",
    "evaluate.inception_weights": "--inception-weights",
    "evaluate.dinov2_weights": "--dinov2-weights",
    "evaluate.clip_weights": "--clip-weights",
    "evaluate.lpips_network": "--lpips-network",
    "evaluate.lpips_weights": "--lpips-weights",
    "evaluate.guidance_scale": "--guidance-scale",
    "evaluate.sampler_steps": "--steps",
    "evaluate.extractor": "--extractor",
    "evaluate.protocol": "--protocol",
    "evaluate.metrics": "--metrics",
    "evaluate.samples": "--number",
    "target.holdout": "--holdout",
    "source.model": "IMAGES_OR_MODEL",
}
"""The option for each field of a run's file, for messages."""
SECTIONS: Mapping[Against, str] = {
    "held-out images": "against held-out images",
    "nothing": "of the generated images alone",
    "training images": "against the images trained on",
    "training and held-out images": "copies of the images trained on",
}


@dataclass(frozen=True)
class Options:
    """What was given on the command line; None for what wasn't."""

    trial: str | None = None
    target: str | None = None
    holdout: str | None = None
    metrics: str | None = None
    number: int | None = None
    size: int | None = None
    protocol: str | None = None
    extractor: str | None = None
    extractor_weights: str | None = None
    inception_weights: str | None = None
    dinov2_weights: str | None = None
    clip_weights: str | None = None
    lpips_network: str | None = None
    lpips_weights: str | None = None
    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    copies: Path | None = None
    json: str | None = None


OF_SWEEPS = ("trial",)
OF_ALL = ("json",)
OF_PIPELINES = ("sampler", "steps", "guidance_scale", "seed")
OF_IMAGES = ("size",)


def kind_of(place: str) -> Kind:
    """What is at a place. Raises UserError where nothing is."""
    if place.startswith("embedded://"):
        return "pipeline" if place in EMBEDDED_MODELS else "images"
    if is_remote(place):
        folder = Folder(place)
        return "sweep" if folder.exists(SPEC) else "pipeline" if folder.exists("model_index.json") else "images"
    path = os.path.expanduser(place.removeprefix("file://"))
    for name, kind in ((SPEC, "sweep"), ("model_index.json", "pipeline")):
        if os.path.exists(os.path.join(path, name)):
            return "sweep" if kind == "sweep" else "pipeline"
    if os.path.lexists(os.path.expanduser(without_column(place)[0].removeprefix("file://"))):
        return "images"
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        return "pipeline"
    raise UserError(
        f"{place}: nothing is there; a sweep's folder, images (a folder, zip, Parquet file or URL) or a pipeline would be right"
    )


def check_options(kind: Kind, options: Options) -> None:
    """Raise UserError for an option that doesn't apply."""
    inapplicable: set[str] = {
        "sweep": {one.name for one in fields(Options)} - {*OF_SWEEPS, *OF_ALL},
        "pipeline": {*OF_SWEEPS, *OF_IMAGES},
        "images": {*OF_SWEEPS, *OF_PIPELINES},
    }[kind]
    why = {
        "sweep": "is for images and pipelines; a sweep is measured as its file says",
        "pipeline": "isn't for a pipeline",
        "images": "is for a model, and these are images",
    }[kind]
    if kind != "sweep" and options.trial is not None:
        raise UserError("--trial: is one of a sweep's; without it the command would be right")
    for one in fields(Options):
        if one.name in inapplicable and getattr(options, one.name) is not None:
            raise UserError(f"--{one.name.replace('_', '-')}: {why}; without it the command would be right")


def evaluate_place(place: str, kind: Kind, options: Options) -> None:
    """Measure images or a pipeline; print the table, and write the JSON and the strip of copies where they are asked for."""
    _check_outputs(options)
    try:
        request = _request(place, options)
        device = pick_device(1 if torch.cuda.is_available() else 0)
        with telling(plain_console(sys.stderr)) as said:
            candidate = _candidate(place, request, device) if kind == "pipeline" else None
            judgement = judge(request, candidate, device, said)
    except UserError as error:
        raise _of_options(error) from error
    told = f"{len(judgement.values)} metrics of {place}"
    console = _tables_console(options)
    console.print(judgement_table(judgement, told, width=console.width))
    for line in _foot(judgement):
        console.print(line, style="dim")
    for remark in judgement.remarks:
        print(f"warning: {remark}", file=sys.stderr)
    _write(place, kind, judgement, options)


def evaluate_finished(place: str, options: Options) -> None:
    """Measure a sweep's result as its file says, with its `test.json` also where the JSON was asked for."""
    _check_outputs(options)
    for line in inputs_for_evaluate(place):
        print(f"warning: {line}", file=sys.stderr)
    found = evaluate_sweep(place, options.trial, _tables_console(options))
    _write_json({"place": place, "kind": "sweep", **found}, options)


def _tables_console(options: Options) -> Console:
    """Standard error where the JSON goes to standard output."""
    return plain_console(sys.stderr if options.json == STDOUT else None)


def _request(place: str, options: Options) -> Request:
    """What the options ask for. Raises UserError."""
    same = ("protocol", "extractor", "extractor_weights", "inception_weights", "dinov2_weights", "clip_weights", "lpips_network")
    given = {name: getattr(options, name) for name in (*same, "lpips_weights", "sampler", "guidance_scale")}
    given |= {"sampler_steps": options.steps}
    find_protocol(options.protocol or "clean")
    for name in ("sampler", "lpips_network"):
        known = get_args(EvaluateSpec.model_fields[name].annotation)
        if given[name] is not None and given[name] not in known:
            raise UserError(f"--{name.replace('_', '-')} {given[name]}: not known; {' or '.join(known)} would be right")
    config = EvaluateSpec.model_validate({name: value for name, value in given.items() if value is not None})
    return Request(
        place,
        config,
        seed=options.seed or 0,
        metrics=_metrics(options.metrics),
        target=options.target,
        holdout=options.holdout,
        number=options.number,
        size=options.size,
        copies=SHOWN_COPIES if options.copies is not None else 0,
    )


def _metrics(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"--metrics {text!r}: names none; metrics with commas between them, as kid,pairwise_distance, would be right")
    for name in names:
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
            raise UserError(f"--metrics: there is no {name!r}; {', '.join(METRICS)} are right (did you mean {nearest}?)")
    return names


def _candidate(place: str, request: Request, device: torch.device) -> Candidate:
    candidate = loaded_pipeline("IMAGES_OR_MODEL", place, device)
    if isinstance(candidate, DiffusionCandidate):
        timesteps, steps = candidate.backbone.schedule.timesteps, request.config.sampler_steps
        if steps > timesteps:
            raise UserError(f"--steps {steps}: the model has {timesteps} timesteps; no more would be right")
        if request.config.guidance_scale != 1 and not candidate.class_names:
            raise UserError(f"--guidance-scale {request.config.guidance_scale:g}: {place} has no classes; without it would be right")
    return candidate


def _of_options(error: UserError) -> UserError:
    """The same error with options in place of a file's fields."""
    lines = list(error.lines)
    for field, option in OPTIONS.items():
        lines = [line.replace(field, option) for line in lines]
    return UserError(*lines)


def judgement_table(judgement: Judgement, title: str, *, width: int) -> Table:
    """A metric a row, in sections by what it compares with: name, value, 95 % interval."""
    table = Table(box=None, pad_edge=False, header_style="bold", title=title if width >= len(title) else None, title_justify="left")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", overflow="fold")
    for compared, heading in SECTIONS.items():
        rows = {name: value for name, value in judgement.values.items() if value.against == compared}
        if rows:
            table.add_row(Text(heading, style="italic"))
        for name, value in rows.items():
            arrow = "↓" if METRICS[name].direction == "min" else "↑"
            table.add_row(f"{name} {arrow}", format_metric(value.value), _interval(value))
            for beside, also in value.beside.items():
                table.add_row(f"  {beside}", format_metric(also), "")
    return table


def _interval(value: Value) -> str:
    return "" if value.interval is None else f"{value.interval.low:.4g} .. {value.interval.high:.4g}"


def _foot(judgement: Judgement) -> Iterator[str]:
    """The stamps in words, and how the intervals were found."""
    yield from stamp_lines(value.stamp for value in judgement.values.values())
    methods: dict[str, list[str]] = {}
    for name, value in judgement.values.items():
        if value.interval is not None:
            methods.setdefault(value.interval.method, []).append(name)
    if methods:
        yield "intervals: " + "; ".join(f"{', '.join(names)}: {method}" for method, names in methods.items())


def judgement_json(place: str, kind: Kind, judgement: Judgement, options: Options) -> dict[str, Any]:
    """Every value with its interval and stamp."""
    found: dict[str, Any] = {
        "place": place,
        "kind": kind,
        "target": options.target,
        "holdout": options.holdout,
        "metrics": {name: value.to_json(name) for name, value in judgement.values.items()},
        "warnings": list(judgement.remarks),
    }
    return found | ({} if judgement.copies is None else {"copies": judgement.copies.to_json()})


def _check_outputs(options: Options) -> None:
    """Raise UserError, before anything is measured, where a file can't be written."""
    if options.copies is not None and options.copies.suffix.lower() != ".png":
        raise UserError(f"--copies {options.copies}: a strip is a PNG file; a name that ends in .png would be right")
    for option, path in (("--json", options.json if options.json != STDOUT else None), ("--copies", options.copies)):
        if path is not None:
            if Path(path).is_dir():
                raise UserError(f"{option} {path}: is a folder; a file would be right")
            check_writable(Folder(Path(path).absolute().parent))


def _write(place: str, kind: Kind, judgement: Judgement, options: Options) -> None:
    """Write what was asked for, at once and only now that all of it is there."""
    if options.copies is not None and judgement.copies is not None:
        Folder(options.copies.absolute().parent).write_bytes(options.copies.name, judgement.copies.png())
    _write_json(judgement_json(place, kind, judgement, options), options)


def _write_json(found: Mapping[str, Any], options: Options) -> None:
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    if options.json == STDOUT:
        sys.stdout.write(text)
    elif options.json is not None:
        path = Path(options.json).absolute()
        Folder(path.parent).write_text(path.name, text)
