"""Reads and writes a sweep's folder: trial records and evaluation rows, as JSON."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import Document, parse_document, to_yaml
from fewshot_ray.spec.sections.evaluate import HOLDOUT_LOSS
from fewshot_ray.spec.wording import show
from fewshot_ray.storage import Folder, writing

Kind: TypeAlias = Literal["search", "source", "confirm", "control", "plain", "refit"]
State: TypeAlias = Literal["RUNNING", "COMPLETE", "PRUNED", "FAIL"]
FailedBy: TypeAlias = Literal["values", "worker"]

SPEC = "spec.yaml"
STAMPS = "stamps.json"
FORMAT = 2
"""Format of a sweep's folder. A release raises it where older ones would misread it, or where its training or metrics differ."""
FORMAT_LINE = "# fewshot-ray sweep, format "
RECORD = "trial.json"
ROWS = "metrics.jsonl"
SOURCE = "source"
"""The id of the record of the source model as it is."""
RAY_LOG = "ray.log"
"""Ray's own log lines; the sweep's are in the terminal."""
INPUTS = "inputs"
"""Sub-folder of the images that were sent by `launch`."""
NOT_A_RECORD = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
"""Errors of reading JSON of another structure: `1e999` has no whole number, brackets may be nested without end."""
TEXT, WHOLE, NUMBER, NOTHING = (str,), (int,), (int, float), (type(None),)
RECORD_TYPES: Mapping[str, tuple[type, ...]] = {
    **{"id": TEXT, "number": WHOLE + NOTHING, "kind": TEXT, "origin": TEXT, "label": TEXT, "seed": WHOLE, "state": TEXT},
    **{"params": (dict,), "best_step": WHOLE + NOTHING, "values": (dict, *NOTHING), "error": TEXT + NOTHING, "failed_by": TEXT + NOTHING},
    **{"stopped": TEXT + NOTHING},
    **{"train_sec": NUMBER, "started": TEXT, "ended": TEXT + NOTHING},
}
MOST_STEPS = 2**31
"""Largest step: TensorBoard's limit is twice this."""
SLOWEST = 1e-9
"""Lowest images per second; less would make a trial's time infinite."""


@dataclass(frozen=True)
class TrialRecord:
    """The contents of `trials/<id>/trial.json`."""

    id: str
    """`t0007`, `confirm-t0007-seed1`, `control-t0007-seed1`, `p0003`, `refit-t0007` or `source`; the trial's folder has this name."""
    number: int | None
    """The Optuna trial's number; None outside the search and plain fine-tuning's own."""
    kind: Kind
    origin: str
    """What proposed it: `preset`, `plain`, `file` or `sampler`; for a rerun the search trial's id; `source` for the source."""
    label: str
    """Its description in the leaderboard."""
    seed: int
    state: State
    params: Mapping[str, Any] = field(default_factory=dict)
    """The searched values by dotted path, `method.ant.noise_steps` -> 3."""
    best_step: int | None = None
    values: Mapping[str, float] | None = None
    """Every metric at `best_step`."""
    error: str | None = None
    failed_by: FailedBy | None = None
    """Whether a failed trial did by its values (a loss that isn't finite, settings that don't fit the model) or by its worker's crashes."""
    stopped: str | None = None
    """Why it ended before its last step: `turned`, `race` or `halving`, and where."""
    train_sec: float = 0.0
    started: str = ""
    """ISO 8601 time."""
    ended: str | None = None

    @property
    def ended_sec(self) -> float | None:
        """When it ended, in seconds since 1970; None while it runs. Raises ValueError or OverflowError where `ended` is no time."""
        return None if self.ended is None else datetime.fromisoformat(self.ended).timestamp()


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluation, a line of `trials/<id>/metrics.jsonl`."""

    step: int
    time: float
    """Seconds since 1970."""
    metrics: Mapping[str, float]
    train_loss: float
    lr: float
    images_per_sec: float
    trained_share: float
    """Number of trained parameters divided by all parameters of the network."""
    image_losses: list[float] = field(default_factory=list)
    """The held-out loss of each held-out image, fold by fold; empty where it isn't measured."""
    by_image: Mapping[str, list[float]] = field(default_factory=dict)
    """Further objectives that are computed from held-out losses, by image in the same order."""
    micro_batch: int | None = None
    """Images per forward and backward pass of a worker; None in rows of older releases."""
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes taken by the first worker, at its peak: `host_peak`, `gpu_peak`, `gpu_context`, `gpu_total` (`trial.memory.peak_memory`)."""

    def images_of(self, metric: str) -> tuple[float, ...]:
        """A metric's value by held-out image, whose mean it is; empty for one without."""
        return tuple(self.image_losses if metric == HOLDOUT_LOSS else self.by_image.get(metric, ()))


class SweepFolder:
    """Typed access to the trials below a sweep's folder, on local disk or at a URL."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def trial(self, trial_id: str) -> Folder:
        """The trial's own folder, `trials/<id>`."""
        return self.folder / "trials" / trial_id

    def trials(self) -> list[TrialRecord]:
        """All trials that have a record: the search's by number, then the others by id. Raises UserError at a damaged record."""
        records = [record for name in (self.folder / "trials").names() if (record := self.record(name)) is not None]
        return sorted(records, key=by_number)

    def record(self, trial_id: str) -> TrialRecord | None:
        """The trial's record; None where it has none yet. Raises UserError at a damaged one."""
        try:
            text = self.trial(trial_id).read_bytes(RECORD)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return _record_from(json.loads(text), trial_id)
        except NOT_A_RECORD as error:
            where = f"{self.trial(trial_id).url}/{RECORD}"
            raise UserError(f"{where}: not a trial's record ({_reason(error)}); remove that trial's folder to run it again") from error

    def write_trial(self, record: TrialRecord) -> None:
        """Write the record atomically, replacing the earlier one."""
        tree = asdict(record)
        tree["values"] = None if record.values is None else _to_json(record.values)
        self.trial(record.id).write_text(RECORD, json.dumps(tree, indent=1, allow_nan=False) + "\n")

    def rows(self, trial_id: str) -> list[EvaluationRow]:
        """The trial's evaluations in the order written; an incomplete last line is ignored. Raises UserError for an invalid line."""
        return [self._row(trial_id, number, line) for number, line in enumerate(self._lines(trial_id), start=1)]

    def stamps(self, trial_id: str) -> dict[str, dict[str, str | int | float | bool]]:
        """By metric what its values are measured with; empty before the trial's first evaluation, and where an older release ran it."""
        try:
            found = json.loads(self.trial(trial_id).read_bytes(STAMPS))
        except (FileNotFoundError, ValueError):
            return {}
        return {name: one for name, one in found.items() if isinstance(one, dict)} if isinstance(found, dict) else {}

    def append_row(self, trial_id: str, row: EvaluationRow) -> None:
        """Add an evaluation; on local disk it is synced when this returns. An incomplete last line is removed first."""
        line = row_line(row)
        folder = self.trial(trial_id)
        if folder.local is not None:
            _append_durably(folder.local / ROWS, line)
        else:
            folder.write_bytes(ROWS, b"".join([*self._lines(trial_id), line]))

    def saved_step(self, trial_id: str) -> int | None:
        """The step of the trial's latest complete checkpoint; None before the first."""
        folder = self.trial(trial_id) / "checkpoints"
        matches = (re.fullmatch(r"step_(\d+)", name) for name in folder.names())
        steps = sorted((int(match[1]) for match in matches if match), reverse=True)
        return next((step for step in steps if folder.exists(f"step_{step:06d}/manifest.json")), None)

    def grid_steps(self, trial_id: str) -> list[int]:
        """The steps that have a sample grid, ascending."""
        matches = (re.fullmatch(r"step_(\d+)\.png", name) for name in (self.trial(trial_id) / "samples").names())
        return sorted(int(match[1]) for match in matches if match)

    def grid(self, trial_id: str, step: int) -> bytes:
        """The PNG of the samples at `step`. Raises FileNotFoundError."""
        return (self.trial(trial_id) / "samples").read_bytes(grid_name(step))

    def strip(self, trial_id: str, step: int) -> bytes | None:
        """The PNG of interpolations through the latent space at `step`; None for a model without one."""
        try:
            return (self.trial(trial_id) / "samples").read_bytes(strip_name(step))
        except FileNotFoundError:
            return None

    def write_grid(self, trial_id: str, step: int, png: bytes) -> None:
        """Write the PNG of the samples at `step`."""
        (self.trial(trial_id) / "samples").write_bytes(grid_name(step), png)

    def _lines(self, trial_id: str) -> list[bytes]:
        """The complete lines, each with its newline."""
        try:
            content = self.trial(trial_id).read_bytes(ROWS)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)

    def _row(self, trial_id: str, number: int, line: bytes) -> EvaluationRow:
        try:
            return _row_from(json.loads(line))
        except NOT_A_RECORD as error:
            where = f"{self.trial(trial_id).url}/{ROWS}, line {number}"
            raise UserError(f"{where}: not an evaluation ({_reason(error)}); remove that trial's folder to run it again") from error


def sweep_text(document: Document) -> str:
    """The text of a sweep's `spec.yaml`: the folder's format as a comment, and the spec."""
    return f"{FORMAT_LINE}{FORMAT}\n{to_yaml(document.tree)}"


def read_spec(folder: Folder) -> Document:
    """The spec of a sweep or of one of its trials. Raises UserError where it is missing, isn't text, or is of a newer release."""
    try:
        text = folder.read_text(SPEC)
        _known_format(text, folder)
        return parse_document(text, f"{folder.url}/{SPEC}")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{folder.url}: {SPEC} is missing; a folder that `fewshot-ray run` made would be right") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{folder.url}/{SPEC}: is no text; the file that `fewshot-ray run` wrote would be right") from error


def check_trainable(folder: Folder) -> None:
    """Raise UserError where an older release began this sweep: its results can't be ranked with new trials."""
    number = _known_format(folder.read_bytes(SPEC).decode(errors="replace"), folder)
    if number < FORMAT:
        raise UserError(
            f"{folder.url}: an older fewshot-ray began this sweep (format {number}, this one trains format {FORMAT}), whose numbers "
            "differ; it can be shown, exported and evaluated; to train, another name would be right"
        )


def _known_format(text: str, folder: Folder) -> int:
    """The format number in a sweep's `spec.yaml`, 1 where it has none. Raises UserError where a newer release wrote it."""
    named = text.removeprefix(FORMAT_LINE).split("\n", 1)[0].strip() if text.startswith(FORMAT_LINE) else ""
    number = int(named) if named.isdecimal() else 1
    if number > FORMAT:
        raise UserError(
            f"{folder.url}/{SPEC}: a newer fewshot-ray wrote this sweep (format {number}, this one reads up to {FORMAT}); "
            "`pip install --upgrade fewshot-ray` is right"
        )
    return number


def trial_id(number: int) -> str:
    """The id of the search's trial of this number, e.g. `t0007`."""
    return f"t{number:04d}"


def plain_trial_id(number: int) -> str:
    """The id of the trial of this number of plain fine-tuning's own search, e.g. `p0003`."""
    return f"p{number:04d}"


def grid_name(step: int) -> str:
    """The file name of the sample grid at `step`: `step_000080.png`."""
    return f"step_{step:06d}.png"


def strip_name(step: int) -> str:
    """The file name of interpolations through the latent space at `step`: `path_000080.png`."""
    return f"path_{step:06d}.png"


def _record_from(tree: Any, own_id: str) -> TrialRecord:
    known = {key: value for key, value in _mapping(tree).items() if key in RECORD_TYPES}
    for key, value in known.items():
        if type(value) not in RECORD_TYPES[key]:
            raise TypeError(f"{key}: {show(value)}")
    record = TrialRecord(**known)
    if record.id != own_id:
        raise ValueError(f"it is {show(record.id)}'s")
    if record.kind not in get_args(Kind) or record.state not in get_args(State):
        raise ValueError(f"kind {show(record.kind)} with state {show(record.state)}")
    if record.failed_by not in (None, *get_args(FailedBy)):
        raise ValueError(f"failed_by {show(record.failed_by)}")
    if record.number is not None and record.id != (trial_id if record.kind == "search" else plain_trial_id)(record.number):
        raise ValueError(f"number {show(record.number)} of {show(record.id)}")
    if (record.kind == "source") != (record.id == SOURCE):
        raise ValueError(f"kind {show(record.kind)} of {show(record.id)}")
    if (record.kind in ("search", "plain")) != (record.number is not None):
        raise ValueError(f"kind {show(record.kind)} with number {show(record.number)}")
    if (record.values is None) != (record.best_step is None) or (record.values is None and record.state == "COMPLETE"):
        raise ValueError(f"{record.state} with values {show(record.values)} of step {show(record.best_step)}")
    if record.best_step is not None:
        _step(record.best_step)
    if not (math.isfinite(record.train_sec) and math.isfinite(record.ended_sec or 0.0)):
        raise ValueError(f"train_sec: {record.train_sec}, ended: {record.ended}")
    return record if record.values is None else replace(record, values=_from_json(record.values))


def _row_from(node: Any) -> EvaluationRow:
    tree = _mapping(node)
    row = EvaluationRow(
        step=_step(tree["step"]),
        time=float(tree["time"]),
        metrics=_from_json(tree["metrics"]),
        train_loss=float(tree["train_loss"]),
        lr=float(tree["lr"]),
        images_per_sec=float(tree["images_per_sec"]),
        trained_share=float(tree["trained_share"]),
        image_losses=[float(loss) for loss in tree.get("image_losses", ())],
        by_image={name: [float(value) for value in values] for name, values in _mapping(tree.get("by_image", {})).items()},
        micro_batch=None if (micro_batch := tree.get("micro_batch")) is None else int(micro_batch),
        memory={name: int(number) for name, number in _mapping(tree.get("memory", {})).items()},
    )
    if not math.isfinite(row.time) or not (row.images_per_sec == 0 or row.images_per_sec > SLOWEST):
        raise ValueError(f"time {row.time}, images_per_sec {row.images_per_sec}")
    return row


def _step(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_STEPS:
        raise ValueError(f"step {show(value)}")
    return value


def by_number(record: TrialRecord) -> tuple[bool, int, str]:
    """Sorts the search's trials by number, then the others by id."""
    return record.kind != "search", record.number or 0 if record.kind == "search" else 0, record.id


def row_line(row: EvaluationRow) -> bytes:
    """A line of `metrics.jsonl`."""
    tree: dict[str, object] = {"step": row.step, **_to_json({"time": row.time}), "metrics": _to_json(row.metrics)}
    tree |= _to_json({"train_loss": row.train_loss, "lr": row.lr, "images_per_sec": row.images_per_sec, "trained_share": row.trained_share})
    if row.image_losses:
        tree["image_losses"] = [_number(loss) for loss in row.image_losses]
    if row.by_image:
        tree["by_image"] = {name: [_number(value) for value in values] for name, values in row.by_image.items()}
    if row.micro_batch is not None:
        tree["micro_batch"] = row.micro_batch
    if row.memory:
        tree["memory"] = dict(row.memory)
    return json.dumps(tree, allow_nan=False).encode() + b"\n"


def _to_json(values: Mapping[str, float]) -> dict[str, float | str]:
    """The tree with NaN and infinities as the texts `nan`, `inf` and `-inf`, which JSON's numbers don't have."""
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _from_json(values: Any) -> dict[str, float]:
    return {name: float(value) for name, value in _mapping(values).items()}


def _mapping(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise TypeError(f"{type(tree).__name__} where an object should stand")
    return tree


def _append_durably(path: Path, line: bytes) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            whole = _length_of_whole_lines(file.fileno())
            file.truncate(whole)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def _length_of_whole_lines(descriptor: int) -> int:
    """The number of bytes up to and including the last newline; reads backwards, since the end is nearly always complete."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 4096)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
