"""Whether a change leaves every number as it was: the first ten steps of every file in sweeps/, here and at another revision.

python bench/faults/golden.py --against REV

REV is anything that git can check out (main, HEAD~1); it is checked out beside this working tree and removed again. Each tree runs
its own `python -m tests.golden --exact`, one after the other, on this machine, with one thread: losses, weights, averages and
optimisers' state have to be the same, bit for bit. Names the first step and phase that differ, and ends with 1 where one does.
For changes that are pure moves; across machines tests/test_golden.py compares to 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path("tests", "golden.py")


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A temporary working tree of the revision. Ends the program where git doesn't know it."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        added = subprocess.run(["git", "worktree", "add", "--detach", str(tree), revision], cwd=ROOT, capture_output=True, text=True)
        if added.returncode:
            raise SystemExit(f"--against {revision}: git can't check it out ({added.stderr.strip().splitlines()[-1]})")
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def first_steps(tree: Path) -> dict[str, Any]:
    """By file in sweeps/: `losses`, by phase, a step each, and `state`, the hash of what the steps leave. By the tree's own code."""
    if not (tree / SCRIPT).is_file():
        raise SystemExit(f"the revision has no {SCRIPT}: one that has it can be compared")
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run([sys.executable, "-m", "tests.golden", "--exact"], cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    if ran.returncode:
        raise SystemExit(f"python -m tests.golden --exact ended with {ran.returncode} in {tree}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> Iterator[str]:
    """A line for each file that differs or that one side lacks."""
    for name in sorted(now.keys() | then.keys()):
        if name not in now or name not in then:
            yield f"{name}: only {'here' if name in now else 'at the revision'}"
        elif (first := first_difference(now[name]["losses"], then[name]["losses"])) is not None:
            yield f"{name}: {first}"
        elif now[name]["state"] != then[name]["state"]:
            yield f"{name}: the losses are the same, the weights, averages or optimisers' state after them are not"


def first_difference(now: list[dict[str, float]], then: list[dict[str, float]]) -> str | None:
    """The first step and phase whose losses differ; None where all are the same."""
    for step, (here, there) in enumerate(zip(now, then, strict=False), start=1):
        for phase in [*there, *(here.keys() - there.keys())]:
            if here.get(phase) != there.get(phase):
                return f"step {step}, {phase}: {here.get(phase)!r} here, {there.get(phase)!r} at the revision"
    return None if len(now) == len(then) else f"{len(now)} steps here, {len(then)} at the revision"


def main() -> int:
    """Run both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", required=True)
    given = parser.parse_args()
    now = first_steps(ROOT)
    with checked_out(given.against) as tree:
        then = first_steps(tree)
    lines = list(differences(now, then))
    print("\n".join(lines) or f"{len(now)} files: every loss and every weight is the same as at {given.against}, bit for bit")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
