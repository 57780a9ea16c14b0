"""Every bench that a GPU changes, in 12 minutes: the most valuable first, each part in 100 seconds; without a GPU the same, tiny.

python bench/gpu.py [--minutes 12]

Each part is a program of its own, which is stopped after 100 seconds. What it measured it writes to results/ itself; after each part
`results/gpu.json` says how it ended and its last lines, so that nothing is lost where the machine goes. Ends with 1 where a part does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.machine import write_result

BENCH = Path(__file__).parent
MOST_SEC = 100.0
"""Of a part."""
LAST_LINES = 60
GPU = (
    ("costs/step/step_settings.py", "--device", "cuda"),
    ("costs/step/step_cost.py", "--device", "cuda", "--params", "full", "--repetitions", "3"),
    ("costs/step/gan_cost.py", "--device", "cuda", "--repetitions", "3"),
    ("costs/packing.py", "--device", "cuda"),
    ("costs/step/step_cost.py", "--device", "cuda", "--params", "full", "--precision", "bf16", "--repetitions", "3"),
    ("costs/step/step_cost.py", "--device", "cuda", "--compile", "--repetitions", "3"),
    ("costs/step/step_cost.py", "--device", "cuda", "--params", "lora", "adaptor", "--repetitions", "3"),
)
CPU = (
    ("costs/step/step_settings.py", "--quick"),
    ("costs/step/step_cost.py", "--quick", "--params", "full", "--repetitions", "1"),
    ("costs/step/gan_cost.py", "--quick", "--repetitions", "1"),
    ("costs/packing.py", "--quick"),
)


def run_part(script: str, *arguments: str, most_sec: float) -> dict[str, Any]:
    """The part's code (None where it was stopped), seconds and last lines; its output is shown as it comes."""
    started, lines, stopped = time.monotonic(), [], threading.Event()
    command = [sys.executable, str(BENCH / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as running:

        def stop() -> None:
            stopped.set()
            running.kill()

        timer = threading.Timer(most_sec, stop)
        timer.start()
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        running.wait()
        timer.cancel()
    return {
        "part": " ".join([script, *arguments]),
        "code": None if stopped.is_set() else running.returncode,
        "sec": round(time.monotonic() - started, 1),
        "output": lines[-LAST_LINES:],
    }


def main() -> int:
    """Run them in turn, whatever becomes of each, for as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0)
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    parts = GPU if gpu else CPU
    ended: list[dict[str, Any]] = []
    for number, part in enumerate(parts, start=1):
        left = end - time.monotonic()
        if left <= 0:
            break
        print(f"[{number}/{len(parts)}] {' '.join(part)}", flush=True)
        ended.append(run_part(*part, most_sec=min(MOST_SEC, left)))
        how = "was stopped" if ended[-1]["code"] is None else f"ended with {ended[-1]['code']}"
        print(f"[{number}/{len(parts)}] {how} after {ended[-1]['sec']} s", flush=True)
        if gpu:
            write_result("gpu", " ".join(["python", "bench/gpu.py", *sys.argv[1:]]), {"gpu": gpu, "parts": ended})
    return int(len(ended) < len(parts) or any(part["code"] != 0 for part in ended))


if __name__ == "__main__":
    sys.exit(main())
