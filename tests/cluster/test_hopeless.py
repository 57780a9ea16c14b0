"""Sweeps on a real Ray in which all trials fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from fewshot_ray.cli.main import _run
from fewshot_ray.cluster.driver import run_sweep
from fewshot_ray.errors import UserError
from fewshot_ray.search.opened import planned_sweep
from fewshot_ray.spec.ranges import FloatRange
from tests.cluster.conftest import sweep_file

pytestmark = pytest.mark.ray
IMPOSSIBLE = {"lr": FloatRange(1e6, 1e8, log=True), "steps": 6}


def test_a_sweep_without_hope(local_ray: None, tmp_path: Path) -> None:
    """Oracle: docs/resuming.md: plain fine-tuning and three of the sampler's fail alike: one line, exit code 2, and no further trial."""
    search = {"trials": 40, "concurrent": None, "scheduler": None}
    opened = planned_sweep(sweep_file("hopeless", tmp_path, search=search, train=IMPOSSIBLE))
    with pytest.raises(UserError, match=r"hopeless: all of the first [45] trials failed alike \(the denoiser loss is nan") as caught:
        run_sweep(opened)
    assert "\n" not in str(caught.value)
    states = [record.state for record in opened.folder.trials()]
    assert states.count("FAIL") >= 4
    assert len(states) <= 8


def test_a_sweep_in_which_every_trial_failed(local_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: docs/resuming.md: exit code 1, and one line that says so."""
    opened = planned_sweep(sweep_file("none", tmp_path, search={"trials": 2, "scheduler": None}, train=IMPOSSIBLE))
    with pytest.raises(typer.Exit) as caught:
        _run(opened, None)
    assert caught.value.exit_code == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert [line for line in said if line.startswith("error: ")] == [said[-1]]
    assert "fail" in said[-1].lower()
    assert [(record.state, record.failed_by) for record in opened.folder.trials()] == [("FAIL", "values")] * 2
