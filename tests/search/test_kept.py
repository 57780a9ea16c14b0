"""What is left of the checkpoints when trials have ended."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fewshot_ray.search.job import Job
from fewshot_ray.search.leaderboard import leaderboard
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import saved_steps, write_checkpoint
from tests.search.synthetic import ASHA, evaluations, file, open_sweep


def checkpoints(folder: SweepFolder, trial_id: str) -> list[int]:
    return saved_steps(folder.trial(trial_id) / "checkpoints")


def run(folder: Folder, document: Document, stop_after: int | None = None) -> SweepFolder:
    """Every trial, writing a checkpoint at each evaluation as a worker does; stopped ones write one more afterwards."""
    sweep = open_sweep(folder, document)
    ended = 0
    while isinstance(job := sweep.next_job(), Job):
        place = sweep.folder.trial(job.id) / "checkpoints"
        for row in evaluations(job):
            write_checkpoint(place, row.step, {"state.json": b"{}"})
            if sweep.evaluated(job.id, row):
                break
        sweep.ended(job.id)
        record = sweep.folder.record(job.id)
        assert record is not None
        if record.state == "PRUNED":
            write_checkpoint(place, 99, {"state.json": b"{}"})
        ended += 1
        if ended == stop_after:
            break
    return sweep.folder


@pytest.mark.parametrize("stop_after", [None, 5])
def test_the_best_keep_their_best(stop_after: int | None, tmp_path: Path) -> None:
    """Oracle: the records: the two best of the sampler's, preset and plain, each with its best step alone; a resume changes nothing."""
    random.seed(0)
    document = file(search={"trials": 12, "scheduler": ASHA, "keep_checkpoints": 2})
    if stop_after is not None:
        run(Folder(tmp_path), document, stop_after)
    folder = run(Folder(tmp_path), document)
    records = folder.trials()
    assert {record.state for record in records} == {"COMPLETE", "PRUNED"}
    complete = [record for record in records if record.state == "COMPLETE"]
    values = {record.id: (record.values or {})["holdout_loss"] for record in complete if record.origin not in ("preset", "plain")}
    assert len(values) > 2
    kept = {*sorted(values, key=lambda name: values[name])[:2], *(record.id for record in complete if record.id not in values)}
    for record in records:
        assert checkpoints(folder, record.id) == ([record.best_step] if record.id in kept else []), record.id


def test_with_two_objectives_the_front_is_kept(tmp_path: Path) -> None:
    """Oracle: the leaderboard's own marks: of the sampler's trials all that are on the front, and no other."""
    search = {"trials": 14, "objectives": {"kid": "min", "holdout_loss": "min"}, "constraints": {"memorisation": "<= 0.2"}}

    def made(job: Job, step: int) -> dict[str, float]:
        if job.number in (3, 7):
            return {"kid": 0.0, "holdout_loss": 0.0, "memorisation": 0.9}
        # Trials 4, 6, 8, ... are on the front, those between them behind it.
        at = (job.number or 0) / 20
        return {"kid": at + 0.1 * ((job.number or 0) % 2), "holdout_loss": 1 - at, "memorisation": 0.1}

    sweep = open_sweep(Folder(tmp_path), file(search={**search, "keep_checkpoints": 2}))
    while isinstance(job := sweep.next_job(), Job):
        for row in evaluations(job, made):
            write_checkpoint(sweep.folder.trial(job.id) / "checkpoints", row.step, {"state.json": b"{}"})
            sweep.evaluated(job.id, row)
        sweep.ended(job.id)
    rows = leaderboard(sweep.folder, sweep.file.search)
    front = {row.trial.id for row in rows if row.front}
    assert len(front) > 4
    assert not front & {"t0003", "t0007"}
    for row in rows:
        is_kept = row.front or row.trial.origin in ("preset", "plain")
        assert bool(checkpoints(sweep.folder, row.trial.id)) == is_kept, row.trial.id
