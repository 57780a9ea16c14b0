"""What `fewshot-ray leaderboard` says of a sweep that is running, or isn't any more."""

from __future__ import annotations

import io
from pathlib import Path

from fewshot_ray.cli.show import show_sweep
from fewshot_ray.report.terminal import plain_console
from fewshot_ray.search.job import Job
from fewshot_ray.search.lease import Lease
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.storage import Folder
from tests.search.synthetic import evaluations, file, open_sweep, run_job


def shown(sweep: Sweep) -> str:
    """What is printed, on 80 columns."""
    text = io.StringIO()
    show_sweep(sweep.folder, sweep.file, plain_console(text, width=80))
    return text.getvalue()


def test_what_is_interrupted_is_called_that(tmp_path: Path) -> None:
    """Oracle: a lease that is held, and none; the checkpoint past the last evaluation is where the trial goes on."""
    sweep = open_sweep(Folder(tmp_path), file(search={"trials": 2}))
    first, second = sweep.next_job(), None
    assert isinstance(first, Job)
    with Lease(Folder(tmp_path)):
        run_job(sweep, first)
        second = sweep.next_job()
        assert isinstance(second, Job)
        sweep.evaluated(second.id, next(evaluations(second)))
        (sweep.folder.trial(second.id) / "checkpoints").write_text("step_000003/manifest.json", "{}")
        assert "running at 3 " in shown(sweep)
        assert "interrupted" not in shown(sweep)
    sweep.abandon()
    text = shown(sweep)
    assert "running" not in text
    assert "interrupted at 3 " in text
    assert text.endswith(f"\ninterrupted; go on with: fewshot-ray resume {tmp_path}\n")
