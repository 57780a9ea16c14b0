"""How many trials share a GPU or a machine's memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.cluster.placement import trials_on
from fewshot_ray.errors import UserError
from fewshot_ray.search.job import Job
from fewshot_ray.search.packing import Packing, Part
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.spec.sections import ResourcesSpec
from fewshot_ray.storage import Folder
from tests.search.synthetic import evaluations, file, open_sweep, run_job

GB = 10**9
AUTO = {"gpus_per_worker": "auto"}


def measured(gpu: float, total: float = 24, context: float = 0.5) -> dict[str, int]:
    return {"host_peak": GB, "gpu_peak": int(gpu * GB), "gpu_total": int(total * GB), "gpu_context": int(context * GB)}


@pytest.mark.parametrize(
    ("peak", "number", "gpus"),
    # 24 / (1.2 peak + .5), rounded down; Ray counts in ten-thousandths
    [(20.0, 1, 1.0), (9.5, 2, 0.5), (9.6, 1, 1.0), (6.0, 3, 0.3333), (2.0, 8, 0.125), (0.1, 8, 0.125), (30.0, 1, 1.0)],
)
def test_the_fraction_of_a_gpu(peak: float, number: int, gpus: float) -> None:
    """Oracle: by hand. So many of the fraction fit on one GPU, as Ray counts."""
    packing = Packing(ResourcesSpec(**AUTO))
    assert (packing.part(), packing.on_a_gpu) == (Part(1, 1.0), 1)
    packing.learn(measured(peak))
    assert (packing.part().gpus, packing.on_a_gpu) == (gpus, number)
    assert trials_on([({"CPU": 16, "GPU": 1}, 1)], packing.given, part=packing.part()) == number
    assert packing.part(alone=True).gpus == 1.0


def test_the_largest_peak_counts() -> None:
    """Oracle: by hand; said where it changes the number, and not said again."""
    packing = Packing(ResourcesSpec(**AUTO))
    said = [packing.learn(measured(peak)) for peak in (2.0, 2.05, 9.0, 3.0)]
    assert [line is not None for line in said] == [True, False, True, False]
    assert said[2] == "a trial took 9 GB of a GPU with 24 GB at most: from now on 2 share one"
    assert Packing(ResourcesSpec(gpus_per_worker=0.5)).learn(measured(2.0)) is None


def test_a_machines_memory() -> None:
    """Oracle: by hand: 1.2 x 5 GB go into 16 GB twice, whatever cores there are; before that one trial runs."""
    packing, node = Packing(ResourcesSpec(cpus_per_worker="auto")), {"CPU": 8, "memory": 16 * GB}
    packing.most_memory_bytes = 16 * GB
    assert packing.at_once(trials_on([(node, 1)], packing.given, part=packing.part()), 0) == 1
    assert packing.learn({"host_peak": 5 * GB}) is not None
    part = packing.part()
    assert part == Part(1.0, 0.0, 6 * GB)
    assert packing.at_once(trials_on([(node, 1)], packing.given, part=part), 0) == 2
    packing.learn({"host_peak": 15 * GB})  # more than there is with the margin: one at a time, and not none
    assert trials_on([(node, 1)], packing.given, part=packing.part()) == 1
    assert Packing(ResourcesSpec(cpus_per_worker=1)).part() == Part(1.0, 0.0)


def test_no_gpu_to_share() -> None:
    """Oracle: one line with what would be right."""
    with pytest.raises(UserError, match=r"^resources.gpus_per_worker: 'auto' given, but this machine has no GPU; 0 would run on the CPU$"):
        trials_on([({"CPU": 8}, 1)], ResourcesSpec(**AUTO), where="this machine")


def begin(sweep: Sweep) -> Job:
    job = sweep.next_job()
    assert isinstance(job, Job)
    return job


def sweep_of(folder: Path, resources: dict[str, Any]) -> Sweep:
    return open_sweep(Folder(folder), file(search={"trials": 4}, resources=resources), concurrent=4)


def test_the_first_trials_memory_is_on_record(tmp_path: Path) -> None:
    """Oracle: the evaluation's own figures; a resumed sweep has them at once."""
    sweep = sweep_of(tmp_path, AUTO)
    job = begin(sweep)
    assert sweep.running[job.id].part.gpus == 1.0
    for row in evaluations(job):
        sweep.evaluated(job.id, replace(row, memory=measured(6.0), micro_batch=4))
    sweep.ended(job.id)
    assert sweep.running[begin(sweep).id].part.gpus == 0.3333
    assert {(row.micro_batch, row.memory["gpu_peak"]) for row in sweep.folder.rows(job.id)} == {(4, 6 * GB)}
    resumed = sweep_of(tmp_path, AUTO)
    assert resumed.running[begin(resumed).id].part.gpus == 0.3333
    assert resumed.running[begin(resumed).id].part.gpu_context_bytes == GB // 2


@pytest.mark.parametrize("resources", [AUTO, {"gpus_per_worker": 0.3}])
def test_a_part_that_is_too_small(resources: dict[str, Any], tmp_path: Path) -> None:
    """Oracle: by hand: with a whole GPU it goes on, before anything new; there it fails by its values. No retry is counted."""
    sweep = sweep_of(tmp_path, {**resources})
    sweep.packing.learn(measured(6.0))
    packed, other = begin(sweep), begin(sweep)
    sweep.evaluated(packed.id, next(evaluations(packed)))
    sweep.failed(packed.id, "the GPU's memory ran out", by_values=False, gpu_memory=True)
    sweep.ended(packed.id)
    again = begin(sweep)
    assert again.id == packed.id
    assert (sweep.running[again.id].part.gpus, sweep.running[again.id].failures) == (1.0, [])
    assert sweep.packing.at_once(6, whole=1) == 4  # it takes three of two GPUs' six places, as it counts for one already
    sweep.failed(again.id, "the GPU's memory ran out", by_values=True, gpu_memory=True)
    sweep.ended(again.id)
    record = sweep.folder.record(packed.id)
    assert record is not None
    assert (record.state, record.failed_by, record.error) == ("FAIL", "values", "the GPU's memory ran out")
    run_job(sweep, other)


def test_a_sweep_that_ends_while_a_trial_waits_for_a_whole_gpu(tmp_path: Path) -> None:
    """Oracle: by hand: the trial stays one to go on with."""
    sweep = sweep_of(tmp_path, {"gpus_per_worker": 0.5})
    job = begin(sweep)
    sweep.failed(job.id, "the GPU's memory ran out", gpu_memory=True)
    sweep.closing = True
    sweep.ended(job.id)
    record = sweep.folder.record(job.id)
    assert record is not None
    assert (record.state, record.error) == ("RUNNING", None)
