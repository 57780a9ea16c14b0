"""Every bench that a GPU changes, one after another; without a GPU the same at a size that shows that it runs.

python bench/gpu.py [--claims]

Writes what each of them writes; with --claims also the claims on emoji (hours), for which bench/make_emoji.py's folder must be there.
Ends with 1 where a bench does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

BENCH = Path(__file__).parent
GPU = (
    ("step_cost.py", "--device", "cuda"),
    ("step_cost.py", "--device", "cuda", "--precision", "bf16"),
    ("step_cost.py", "--device", "cuda", "--compile"),
    ("gan_cost.py", "--device", "cuda", "--repetitions", "9"),
)
CLAIMS = (
    ("claims.py", "--benchmark", "emoji", "--processes", "4"),
    ("claims.py", "--benchmark", "gans-emoji", "--processes", "4"),
)
CPU = (("step_cost.py", "--quick"), ("gan_cost.py", "--quick"))


def main() -> int:
    """Run them all, whatever becomes of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", action="store_true")
    given = parser.parse_args()
    commands = GPU + (CLAIMS if given.claims else ()) if torch.cuda.is_available() else CPU
    codes = {}
    for number, (script, *arguments) in enumerate(commands, start=1):
        shown, started = " ".join([script, *arguments]), time.monotonic()
        print(f"[{number}/{len(commands)}] {shown}", flush=True)
        codes[shown] = subprocess.run([sys.executable, BENCH / script, *arguments]).returncode
        print(f"[{number}/{len(commands)}] ended with {codes[shown]} after {time.monotonic() - started:.0f} s", flush=True)
    return int(any(codes.values()))


if __name__ == "__main__":
    sys.exit(main())
