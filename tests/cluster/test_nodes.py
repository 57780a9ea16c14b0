"""Several Ray nodes on this machine, one of which dies under a trial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import to_yaml
from fewshot_ray.storage import Folder
from tests.cluster.conftest import run, sweep_file

pytestmark = pytest.mark.ray

CLUSTER = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster

file, sweep = sys.argv[1], Path(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
other = cluster.add_node(num_cpus=1)
command = [sys.executable, "-c", "from fewshot_ray.cli import main; main()", "run", file, "--address", cluster.address]
process = subprocess.Popen(command)
try:
    rows = sweep / "trials" / "t0000" / "metrics.jsonl"
    while not rows.exists() and process.poll() is None:
        time.sleep(0.01)
    cluster.remove_node(other, allow_graceful=False)
    print("node removed", flush=True)
    code = process.wait(150)
finally:
    process.kill()
    cluster.shutdown()
sys.exit(code)
"""


def test_a_trial_goes_on_with_the_workers_of_the_nodes_that_are_left(local_ray: None, short_folder: Path, tmp_path: Path) -> None:
    """Oracle: one worker's curve to 1e-5; the node is lost after the first evaluation and no retry is allowed, so it counts as none."""
    folder = short_folder / "nodes"
    folder.mkdir()
    # Ten evaluations: the node is gone long before the last.
    sections: dict[str, Any] = {
        "search": {"trials": 1, "retries": 0, "scheduler": None},
        "train": {"steps": 300},
        "evaluate": {"every": 30},
    }
    undisturbed = run(sweep_file("undisturbed", tmp_path, **sections)).folder
    file = tmp_path / "nodes.yaml"
    file.write_text(to_yaml(sweep_file("nodes", tmp_path, resources={"workers": 2}, **sections).tree))
    settings = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_initial_delay_ms": "1000",
    }
    settings.pop("RAY_ADDRESS", None)
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(file), str(tmp_path / "nodes")], env=settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node removed" in done.stdout
    sweep = SweepFolder(Folder(tmp_path / "nodes"))
    record = sweep.record("t0000")
    assert record is not None
    assert (record.state, record.error) == ("COMPLETE", None)
    rows, expected = sweep.rows("t0000"), undisturbed.rows("t0000")
    assert [row.step for row in rows] == [row.step for row in expected]
    for row, right in zip(rows, expected, strict=True):
        assert row.train_loss == pytest.approx(right.train_loss, rel=1e-5)
        assert row.metrics["holdout_loss"] == pytest.approx(right.metrics["holdout_loss"], rel=1e-5)
    assert "lost its worker" in done.stdout
