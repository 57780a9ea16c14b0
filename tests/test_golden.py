"""The first ten losses of every file in sweeps/: a change that moves them says why, and writes them anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.faults import golden
from tests.golden import GOLDEN, STEPS, of_file, tolerance
from tests.small_sweeps import FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_first_ten_losses(path: Path) -> None:
    """Oracle: golden_losses.json, as it was when the equations had been checked; `python -m tests.golden` writes it anew."""
    recorded = json.loads(GOLDEN.read_text())[path.stem]
    assert len(recorded) == STEPS
    for step, (now, then) in enumerate(zip(of_file(path, portable=True).losses, recorded, strict=True), start=1):
        within = {phase: pytest.approx(loss, rel=tolerance(path.stem, phase), abs=0) for phase, loss in then.items()}
        assert now == within, f"step {step}"


def test_every_file_has_golden_losses_and_no_other() -> None:
    """Oracle: the files in sweeps/."""
    assert set(json.loads(GOLDEN.read_text())) == {path.stem for path in FILES}


STEPS_OF_ONE = [{"D": 1.0, "G": 2.0}, {"D": 0.5}]


@pytest.mark.parametrize(
    ("then", "line"),
    [
        ({"losses": STEPS_OF_ONE, "state": "a"}, None),
        ({"losses": [STEPS_OF_ONE[0], {"D": 0.5000000000000001}], "state": "a"}, "step 2, D: 0.5 here, 0.5000000000000001 at the revision"),
        ({"losses": [{"D": 1.0}, {"D": 0.5}], "state": "a"}, "step 1, G: 2.0 here, None at the revision"),
        ({"losses": STEPS_OF_ONE[:1], "state": "a"}, "2 steps here, 1 at the revision"),
        ({"losses": STEPS_OF_ONE, "state": "b"}, "the losses are the same, the weights, averages or optimisers' state after them are not"),
    ],
    ids=["nothing", "the last bit", "a phase", "fewer steps", "weights alone"],
)
def test_what_the_bench_says_of_a_difference(then: dict[str, Any], line: str | None) -> None:
    """Oracle: by hand, of two steps."""
    found = list(golden.differences({"one": {"losses": STEPS_OF_ONE, "state": "a"}}, {"one": then}))
    assert found == ([] if line is None else [f"one: {line}"])


def test_the_bench_names_files_that_one_side_lacks() -> None:
    """Oracle: by hand."""
    one = {"losses": STEPS_OF_ONE, "state": "a"}
    assert list(golden.differences({"new": one}, {"old": one})) == ["new: only here", "old: only at the revision"]
