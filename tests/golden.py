"""The first ten steps of every file in sweeps/ on its tiny model: their losses, and a hash of what they leave.

python -m tests.golden            writes golden_losses.json anew
python -m tests.golden --exact    prints, as JSON, what bench/faults/golden.py compares bit for bit
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewshot_ray.spec.document import read_document
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import pack, training_state
from fewshot_ray.training.group import Group
from fewshot_ray.trial.compose import check_document, compose, preset_values, with_values
from fewshot_ray.trial.families import materials_of
from tests.small_sweeps import FILES, small

GOLDEN = Path(__file__).with_name("golden_losses.json")
STEPS = 10
RELATIVE = 1e-5
"""Between processors: how far a golden loss may be off. Kernels for SSE4, AVX2 and AVX-512 part by less than 2e-6."""
OF_PHASES = {"psi": 1e-3, "fastgan/G": 3e-4, "stylegan2/G_path": 1e-2}
"""More where rounding shows more: the square of a difference of cosines near 1; a logit near 0; a derivative of a network of leaky
ReLUs, which jumps where rounding changes a sign (by 1.4e-3 between SSE4 and AVX-512)."""
CPU = torch.device("cpu")

FEWER = {"method.ant.noise_steps": 2}
"""In place of the presets: less to compute, of the same."""
PORTABLE = {"method.mixdl.lambda_g": 10.0}
"""In place of the presets where processors are compared: at 1,000 a divergence of 1e-5 would show its rounding."""
PORTABLE_GAN_LR = 1e-6
"""Adam's first steps are as large where a gradient is rounding alone: at the files' rates a GAN's losses part within three steps."""


@dataclass(frozen=True)
class FirstSteps:
    """What a file's first steps came to."""

    losses: list[dict[str, float]]
    """By phase, a step each; a phase that wasn't active in a step isn't in it."""
    state: str
    """Hash of weights, averages, optimisers' state and running statistics after them."""


def first_steps(path: Path, folder: Path, *, portable: bool) -> FirstSteps:
    """Of a file in sweeps/, its ranges at their presets, on one thread of the CPU.

    `portable`: in float32 and without what makes rounding grow, so that processors agree; else as the file has it.
    """
    document = read_document(path)
    train: dict[str, Any] = {"precision": "fp32"} if portable else {}
    if portable and "gan" in document.tree["source"]:
        train["lr"] = PORTABLE_GAN_LR
    document, _ = check_document(replace(document, tree=small(document.tree, folder, steps=STEPS, **train)))
    preset = preset_values(document)
    instead = {**FEWER, **(PORTABLE if portable else {})}
    spec = compose(with_values(document, {**preset, **{key: value for key, value in instead.items() if key in preset}}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        materials = materials_of(spec, Folder(folder / "cache"), CPU)
        training = materials.training(materials.folds[0], Group.alone())
        losses = []
        for step in range(STEPS):
            training.last_finite.clear()
            training.advance(step + 1)
            losses.append(dict(training.last_finite))
    finally:
        torch.set_num_threads(threads)
    content = pack(*training_state(training, ""))["state.safetensors"]
    return FirstSteps(losses, hashlib.sha256(content).hexdigest())


def tolerance(name: str, phase: str) -> float:
    """How far a file's loss of a phase may be off between processors, relative."""
    kind = name.removeprefix("mixdl-")
    return OF_PHASES.get(phase, OF_PHASES.get(f"{kind}/{phase}", RELATIVE))


def of_file(path: Path, *, portable: bool) -> FirstSteps:
    """`first_steps` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return first_steps(path, Path(folder), portable=portable)


def write() -> None:
    """Write the golden losses anew, a step a line."""
    blocks = []
    for path in FILES:
        steps = [{phase: float(f"{loss:.9g}") for phase, loss in step.items()} for step in of_file(path, portable=True).losses]
        blocks.append(f'"{path.stem}": [\n' + ",\n".join(f" {json.dumps(step)}" for step in steps) + "\n]")
    GOLDEN.write_text("{\n" + ",\n".join(blocks) + "\n}\n")


def main() -> int:
    """Write the file, or print what is compared bit for bit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exact", action="store_true")
    if parser.parse_args().exact:
        print(json.dumps({path.stem: asdict(of_file(path, portable=False)) for path in FILES}))
    else:
        write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
