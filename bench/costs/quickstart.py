"""Wall time and peak memory of the quickstart, and the time `--help` takes.

python bench/costs/quickstart.py; memory is the sum over the whole process tree of proportional set sizes, sampled twice a second.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil

from bench.machine import write_result

ROOT = Path(__file__).resolve().parents[2]
CLI = str(Path(sys.executable).parent / "fewshot-ray")
STEPS = (
    ["run", "sweeps/quickstart.yaml"],
    ["export", "runs/quickstart", "runs/quickstart/model", "--overwrite"],
    ["sample", "runs/quickstart/model", "runs/quickstart/samples", "--overwrite"],
    ["evaluate", "runs/quickstart"],
)


def tree_bytes(process: psutil.Process) -> int:
    """Memory of a process and all below it; one that ends meanwhile counts as nothing."""
    total = 0
    try:
        members = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in members:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def run(arguments: list[str]) -> tuple[float, int]:
    """Seconds and peak bytes of one command."""
    started, peak = time.perf_counter(), 0
    process = psutil.Popen([CLI, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, tree_bytes(process))
        time.sleep(0.5)
    if process.returncode != 0:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    return time.perf_counter() - started, peak


def help_seconds() -> float:
    """Median of seven runs after one to warm the disk's cache."""
    times = []
    for _ in range(8):
        started = time.perf_counter()
        subprocess.run([CLI, "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and write results/quickstart.json."""
    shutil.rmtree(ROOT / "runs" / "quickstart", ignore_errors=True)
    measured = [run(arguments) for arguments in STEPS]
    board = (ROOT / "runs" / "quickstart" / "leaderboard.csv").read_text().splitlines()
    figures = {
        "seconds": round(sum(seconds for seconds, _ in measured), 1),
        "seconds_by_command": {arguments[0]: round(seconds, 1) for arguments, (seconds, _) in zip(STEPS, measured, strict=True)},
        "peak_gb": round(max(peak for _, peak in measured) / 1e9, 2),
        "full_length_search_trials": sum(",search," in line and ",COMPLETE," in line for line in board),
        "help_seconds_median": round(help_seconds(), 3),
    }
    print(figures, write_result("quickstart", "python bench/costs/quickstart.py", figures), sep="\n")


if __name__ == "__main__":
    main()
