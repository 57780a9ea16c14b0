"""`train.compile` with the machine's own compiler."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fewshot_ray.trial.compiling import check_compiler
from tests.trial.tiny import CPU, as_eager

pytestmark = pytest.mark.roundtrip


def test_a_compiled_trial_is_the_eager_one(tmp_path: Path) -> None:
    """Oracle: the eager run, through torch.compile's own compiler."""
    if shutil.which("g++") is None:
        pytest.skip("not installed: g++")
    check_compiler(CPU)
    as_eager(tmp_path)
