"""A sweep run to its end in this process: the real state machine and the real trials, without Ray."""

from __future__ import annotations

import io
import json
import time

from rich.console import Console

from fewshot_ray.cluster.actors import PROBLEM, ROW, trial_results
from fewshot_ray.cluster.driver import write_results
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.search.job import Job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.opened import Opened, planned_sweep, put_on_record
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.spec.document import read_document
from tests.cli.conftest import Desk


def finished_sweep(desk: Desk) -> Opened:
    """The desk's file, run one trial after the other."""
    opened = put_on_record(planned_sweep(read_document(desk.write())))
    file, folder = opened.file, opened.folder
    with Progress(file.train.steps, console=Console(file=io.StringIO())) as progress:
        sweep = Sweep(opened.document, file, folder, Journal(folder.folder), progress, Boards(folder), concurrent=1)
        while isinstance(job := sweep.next_job(), Job):
            for result in trial_results({"job": job.to_json(), "part": {"cpus": 1, "gpus": 0}, "folder": folder.folder.url}):
                if PROBLEM in result:
                    sweep.failed(job.id, result[PROBLEM])
                else:
                    sweep.evaluated(job.id, EvaluationRow(**json.loads(result[ROW]), time=time.time()))
            sweep.ended(job.id)
    write_results(opened)
    return opened
