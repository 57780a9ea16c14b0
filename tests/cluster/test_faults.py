"""`fewshot-ray run` where no trial can end: what is said, and the exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from fewshot_ray.cli.main import _run
from fewshot_ray.search.opened import planned_sweep
from tests.cluster.conftest import sweep_file

pytestmark = pytest.mark.ray


def test_every_trial_failed(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: exit code 1, one error with the first trial's reason, nothing about an export."""
    opened = planned_sweep(sweep_file("absurd", tmp_path, search={"trials": 1, "sampler": "random", "scheduler": None}, train={"lr": 1e30}))
    with pytest.raises(typer.Exit) as ended:
        _run(opened, None)
    assert ended.value.exit_code == 1
    assert [record.state for record in opened.folder.trials()] == ["FAIL"]
    said = capsys.readouterr()
    [error] = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/absurd: no trial has run to its end, 1 of 1 failed (t0000: " in error
    assert "export" not in said.out + said.err
    assert "Traceback" not in said.out + said.err
