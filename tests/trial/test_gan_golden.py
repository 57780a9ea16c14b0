"""The first ten losses of each GAN with MixDL, as they were when the equations had been checked: a refactor must leave them alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.trial.compose import compose, expand
from fewshot_ray.trial.families import materials_of
from tests.trial.test_gan import CASES, CPU, document

GOLDEN = Path(__file__).with_name("gan_golden.json")
STEPS = 10


def losses(place: Path, case: str) -> list[dict[str, float]]:
    """Of every phase's latest step, step by step."""
    sections: dict[str, Any] = {**CASES[case]}
    sections["train"] = {**sections.get("train", {}), "steps": STEPS}
    materials = materials_of(compose(expand(document(**sections))), Folder(place), CPU)
    training = materials.training(materials.folds[0], Group.alone())
    found = []
    for step in range(STEPS):
        training.last_finite.clear()
        training.advance(step + 1)
        found.append({phase: float(f"{loss:.6g}") for phase, loss in training.last_finite.items()})
    return found


@pytest.mark.parametrize("case", ["stylegan2", "fastgan"])
def test_the_first_ten_losses(case: str, tmp_path: Path) -> None:
    """Oracle: `gan_golden.json`; write it anew (this file's `main`) only with a reason that the commit gives."""
    golden = json.loads(GOLDEN.read_text())[case]
    for step, (now, then) in enumerate(zip(losses(tmp_path, case), golden, strict=True)):
        assert now == pytest.approx(then, rel=2e-3), f"step {step}"


def main() -> None:
    """Write the file."""
    import tempfile

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = {case: losses(Path(place) / case, case) for case in ("stylegan2", "fastgan")}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
