"""What the scheduler reads of a lost worker from Tune's own files."""

from __future__ import annotations

from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayTaskError
from ray.train._internal.storage import StorageContext
from ray.tune.experiment import Trial

from fewshot_ray.cluster.lost_workers import error_line, fault_of
from fewshot_ray.cluster.tune import _error
from fewshot_ray.errors import SavedAndEndedError
from fewshot_ray.search.faults import Fault


class Here(StorageContext):
    """Tune's own is below the folder of a Ray that runs."""

    @property
    def trial_driver_staging_path(self) -> str:
        return str(self.storage_fs_path)


def test_each_loss_is_read_as_itself(tmp_path: Path) -> None:
    """Oracle: what Tune was told, in its own order. It pickles some errors and keeps of an OutOfMemoryError the text alone."""
    storage = Here(storage_path=str(tmp_path), experiment_dir_name="experiment", trial_dir_name="trial")
    trial = Trial("trainable", stub=True, storage=storage)
    assert _error(trial) is None
    memory = "Memory on the node (IP: 192.0.2.2, ID: f0d9) was 22.4GB used / 23.54GB limit.\nOOM kill reason: usage exceeded the threshold"
    for _ in range(2):
        trial.handle_error(RayTaskError("step", "Traceback: ...", SavedAndEndedError("SIGTERM", 40)).as_instanceof_cause())
        ended = _error(trial)
        assert fault_of(ended) is Fault.MACHINE_GONE
        assert error_line(ended) == "SavedAndEndedError: SIGTERM; saved at step 40"
        trial.handle_error(OutOfMemoryError(memory))
        killed = _error(trial)
        assert fault_of(killed) is Fault.OUT_OF_MEMORY
        assert error_line(killed) == "out of memory: on node 192.0.2.2, 22.4GB of 23.54GB used"
