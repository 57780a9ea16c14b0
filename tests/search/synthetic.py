"""Sweeps driven without Ray and without training: a worker that reports a curve computed from the trial's values."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console

from fewshot_ray.report.progress import Progress
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.search.job import Job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.sweep import Next, Sweep
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document
from fewshot_ray.trial.ranking import Ranking
from tests.trial.tiny import document

STEPS, EVERY = 8, 2
ANT = {"noise_steps": IntRange(1, 9), "noise_norm": "moments", "noise_step_size": FloatRange(0.005, 0.1, log=True)}
TRAIN = {"steps": STEPS, "lr": FloatRange(1e-4, 1e-2, log=True), "params": Choice(("full", {"lora": {"rank": 2}}))}
EVALUATE = {"every": EVERY, "metrics": ["holdout_loss", "kid", "memorisation"]}
ASHA = {"asha": {"metric": "holdout_loss", "grace_steps": 2, "reduction_factor": 2}}

FULL = {"trials": 5, "scheduler": ASHA, "confirm": {"top": 2, "seeds": [7, 8]}}
CROSSFIT = {"images": "embedded://digits/shots", "shots": 4, "holdout": {"crossfit": 2}}
SMALL = {"ant": {"noise_steps": IntRange(1, 2), "noise_norm": Choice(("moments", "sample"))}}
"""Four configurations, and plain fine-tuning."""

Curve = Callable[[Job, int], dict[str, float]]


class NoBoards:
    """TensorBoard's events have tests of their own."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


def file(**sections: Any) -> Document:
    """A sweep over ANT's fields, the learning rate and the trained parameters."""
    tree: dict[str, Any] = {"name": "s", "method": {"ant": ANT}, "train": TRAIN, "evaluate": EVALUATE, "search": {"trials": 5}}
    for name, section in sections.items():
        merge = name in ("train", "evaluate", "search")
        tree[name] = {**tree[name], **section} if merge else section
    return document(**tree)


def small(trials: int, **search: Any) -> Document:
    """A sweep over few configurations."""
    return file(method=SMALL, train={"lr": 1e-3, "params": "full"}, search={"trials": trials, **search})


def curve(job: Job, step: int) -> dict[str, float]:
    """Falls, then overfits; deterministic in the trial's values, its method, seed and step."""
    draw = random.Random(f"{sorted(map(str, job.params.items()))} {sorted(job.tree['method'])} {job.seed}")
    level, best_at = draw.random(), draw.choice([4, 6, 8])
    noise = random.Random(f"{level} {step}").random() / 50
    return {"holdout_loss": level + abs(step - best_at) / 20 + noise, "kid": 1 - level + noise, "memorisation": step / 30}


def evaluations(job: Job, curve: Curve = curve) -> Iterator[EvaluationRow]:
    """What a worker reports, before and after an interruption; a refit measures nothing."""
    for step in [*range(EVERY, job.last_step, EVERY), job.last_step]:
        metrics = {} if job.refit_steps else curve(job, step)
        yield EvaluationRow(step, 0.0, metrics, 0.5, 1e-3, 40.0, 1.0, image_losses(metrics))


def image_losses(metrics: Mapping[str, float]) -> list[float]:
    """The held-out loss by image: six images, which differ more than the evaluations do."""
    loss = metrics.get("holdout_loss", math.nan)
    draw = random.Random(loss)
    return [loss + apart + draw.gauss(0, 0.001) for apart in (-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)] if math.isfinite(loss) else []


def open_sweep(folder: Folder, document: Document, *, concurrent: int = 1) -> Sweep:
    """The sweep anew from its folder."""
    expanded, spec = check_document(document)
    progress = Progress(STEPS, ranking=Ranking.of(spec.search), console=Console(file=io.StringIO()))
    return Sweep(expanded, spec, SweepFolder(folder), Journal(folder), progress, Boards(SweepFolder(folder)), concurrent=concurrent)


def run_job(sweep: Sweep, job: Job, curve: Curve = curve) -> None:
    """From start to end, as Tune would."""
    for row in evaluations(job, curve):
        if sweep.evaluated(job.id, row):
            break
    sweep.ended(job.id)


def finish_one(sweep: Sweep) -> str:
    """Run the next job; its id."""
    job = sweep.next_job()
    assert isinstance(job, Job)
    run_job(sweep, job)
    return job.id


def finish(sweep: Sweep, curve: Curve = curve) -> list[str]:
    """Run what is left, one trial at a time; the ids in their order."""
    ids = []
    while isinstance(job := sweep.next_job(), Job):
        ids.append(job.id)
        run_job(sweep, job, curve)
    assert job is Next.DONE
    return ids


def outcome(sweep: Sweep) -> dict[str, Any]:
    """Everything but times: records, evaluations, specs, and the study's trials."""
    folder = sweep.folder
    result: dict[str, Any] = {}
    for record in folder.trials():
        result[record.id] = {key: value for key, value in vars(record).items() if key not in ("started", "ended")}
        rows = [(row.step, dict(row.metrics), row.train_loss, row.lr) for row in folder.rows(record.id)]
        result[f"{record.id} rows"] = repr(rows)  # a NaN differs from itself
        result[f"{record.id} spec"] = folder.trial(record.id).read_text("spec.yaml")
    result["study"] = [
        (trial.number, trial.state, trial.values, trial.params, trial.user_attrs, trial.intermediate_values, trial.constraints)
        for trial in sweep.study.study.get_trials()
    ]
    result["rungs"] = sweep.stopping.halving and sweep.stopping.halving.rungs
    return result
