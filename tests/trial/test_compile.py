"""`train.compile`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trial.tiny import trial


def test_a_compiled_trial_is_the_eager_one(tmp_path: Path) -> None:
    """Oracle: the eager run, to 1e-4: training losses and held-out losses, through torch.compile's own compiler."""
    sections = {"evaluate": {"every": 4, "samples": 0, "grid_images": 0, "loss_draws": 4, "metrics": ["holdout_loss"]}}
    eager = list(trial(tmp_path / "eager", **sections).evaluations())
    compiled = list(trial(tmp_path / "compiled", train={"compile": True}, **sections).evaluations())
    assert [one.step for one in compiled] == [one.step for one in eager] == [4]
    for one, other in zip(compiled, eager, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        assert one.metrics == pytest.approx(other.metrics, rel=1e-4)
