"""What a trial does where a GPU's memory runs out, what it records, and how its worker reports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

from fewshot_ray.cluster.actors import trial_results
from fewshot_ray.search.job import Job
from fewshot_ray.training.loop import Training
from fewshot_ray.training.memory import GpuMemoryError
from fewshot_ray.trial.memory import allowed, host_peak, peak_memory
from fewshot_ray.trial.trial import Trial
from tests.trial.tiny import document, trial


def refuse(run: Trial, *, training: int = 100, measuring: int = 100, from_step: int = 0) -> None:
    """Let the trial's network run out of memory with more images than these."""

    def check(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        most = training if network.training else measuring
        if run.trainings[0].step >= from_step and len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    network = run.trainings[0].method.modules()["network"]
    network.register_forward_pre_hook(check)


def test_a_resumed_trial_keeps_the_smaller_micro_batch(tmp_path: Path) -> None:
    """Oracle: by hand: 4 images, from the third step on 2; the row, the remark and the checkpoint say so."""
    run = trial(tmp_path)
    refuse(run, training=2, from_step=2)
    rows = list(run.evaluations())
    assert [row.micro_batch for row in rows] == [4, 2]
    assert len(run.take_remarks()) == 1
    again = trial(tmp_path)
    assert again.trainings[0].micro_batch == 4
    assert [row.micro_batch for row in again.evaluations()] == [4, 2]
    assert again.trainings[0].micro_batch == 2


def test_measuring_in_smaller_parts(tmp_path: Path) -> None:
    """Oracle: the trial that nothing happens to: held-out losses and samples alike."""
    sections = {"evaluate": {"metrics": ["holdout_loss", "kid"], "samples": 6}}
    undisturbed, small = trial(tmp_path / "a", **sections), trial(tmp_path / "b", **sections)
    refuse(small, measuring=1)
    for one, other in zip(undisturbed.evaluations(), small.evaluations(), strict=True):
        assert other.metrics == pytest.approx(one.metrics, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("error", [GpuMemoryError("the GPU's memory ran out at step 1"), torch.OutOfMemoryError("CUDA out of memory. A.")])
@pytest.mark.parametrize("gpus", [1.0, 0.5])
def test_what_a_worker_reports(error: Exception, gpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: docs/resuming.md: by its values with a whole GPU alone; no crash, which would be retried."""

    def fail(training: Training, until: int) -> float:
        raise error

    monkeypatch.setattr(Training, "advance", fail)
    tree = document(evaluate={"metrics": ["holdout_loss"], "samples": 0, "grid_images": 0}).tree
    job = Job("t0000", 0, "search", "plain", "", tree, 0, 4, 1)
    config = {"job": job.to_json(), "folder": str(tmp_path), "part": {"cpus": 1, "gpus": gpus}}
    (result,) = trial_results(config)
    assert (result["by_values"], result["gpu_memory"], result["done"]) == (gpus == 1, True, True)
    assert result["problem"].startswith("the GPU's memory ran out")
    assert "\n" not in result["problem"]


def test_a_trials_memory() -> None:
    """Oracle: psutil's figures of this process; of a GPU there is nothing on a CPU."""
    memory = peak_memory(torch.device("cpu"), alone=True)
    assert memory.keys() == {"host_peak"}
    taken = psutil.Process().memory_info()
    assert taken.rss - taken.shared <= 1.05 * host_peak()
    assert host_peak() <= 2 * taken.rss + 10**9


@pytest.mark.parametrize(
    ("gpus", "context", "share"), [(1.0, 0, 1.0), (2.0, 0, 1.0), (0.5, 10**9, 0.4), (0.5, 0, 0.44), (0.05, 10**9, 0.025)]
)
def test_the_cap_of_a_process(gpus: float, context: int, share: float) -> None:
    """Oracle: by hand, of 10 GB: its part less what CUDA takes (.6 GB where not measured), never under half of the part."""
    assert allowed(gpus, 10**10, context) == pytest.approx(share)
