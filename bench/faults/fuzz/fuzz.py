"""Thousands of malformed inputs, most of them valid files with one thing wrong, against the command line in this process.

python bench/faults/fuzz/fuzz.py [--cases 2000] [--seed 0] [--processes 1] [--only KIND [--case N]]

Demanded of each: exit code 0 or 2 (or 1, where `resume` leaves nothing to export) within a few seconds; with 2 nothing but lines on
standard error that name the file or field each; no traceback, no file of the user's changed or removed, no code run from a pickle; and of
some what they must say, or be answered.
Ctrl-C ends it with what was tried until then.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

# Before anything that reads them: no case may reach a network.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "100"}

import torch

from bench.faults.fuzz.bases import Bases, make_bases
from bench.faults.fuzz.brackets import brackets
from bench.faults.fuzz.case import Case, Kind
from bench.faults.fuzz.colour import colour
from bench.faults.fuzz.endings import endings
from bench.faults.fuzz.models import adm_weights, extractor, gan, pipeline, run_file
from bench.faults.fuzz.pictures import images, parquet
from bench.faults.fuzz.places import place, places_of_our_own
from bench.faults.fuzz.run import WAIT_SEC, changes, contents, first_jobs, judge, run
from bench.faults.fuzz.schedulers import scheduler
from bench.faults.fuzz.sweeps import checkpoint, sweep_folder
from bench.machine import write_result
from fewshot_ray.cluster import driver
from fewshot_ray.copies import CACHE_VARIABLE

MEMORY_BYTES = 12 * 2**30
ROOT = Path(__file__).resolve().parents[3]
KINDS: dict[str, tuple[Kind, int]] = {
    "run file": (run_file, 20),
    "images": (images, 8),
    "colour": (colour, 7),
    "endings": (endings, 5),
    "parquet": (parquet, 4),
    "place": (place, 7),
    "brackets": (brackets, 5),
    "pipeline": (pipeline, 9),
    "scheduler": (scheduler, 7),
    "adm": (adm_weights, 5),
    "gan": (gan, 5),
    "extractor": (extractor, 2),
    "checkpoint": (checkpoint, 6),
    "sweep": (sweep_folder, 10),
}
"""With the share of the cases, in percent."""


@dataclass
class Outcome:
    """What became of a case."""

    kind: str
    number: int
    seed: int
    said: str
    arguments: list[str]
    code: int | None
    """None where an exception came out, or time was up."""
    line: str
    """The refusal's, or the exception's and where."""
    problems: list[str]
    seconds: float


class Fuzz:
    """Cases against the bases."""

    def __init__(self, bases: Bases, seed: int) -> None:
        self.bases = bases
        self.seed = seed
        self.of_bases = _stamps(bases.folder)
        self.terminal = os.dup(2)

    def case(self, kind: str, number: int, *, keep: bool = False) -> Outcome:
        """One case, the same at every time for the same seed."""
        rng = random.Random(f"{self.seed}/{kind}/{number}")
        # A name of its own: what is read once a process is known by its place.
        folder = self.bases.folder.parent / f"{kind.replace(' ', '-')}-{number}"
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            case = KINDS[kind][0](rng, self.bases, folder)
        before = contents(folder)
        watchdog = threading.Timer(2 * WAIT_SEC, self._hung, (kind, number, case))
        watchdog.start()
        answer = run(case)
        watchdog.cancel()
        line, problems = judge(case, answer)
        problems += changes(case, before, contents(folder), refused=answer.code == 2)
        if case.marker.exists():
            case.marker.unlink()
            problems.append("a pickle ran")
        if _stamps(self.bases.folder) != self.of_bases:
            problems.append("a shared file was changed")
            self.of_bases = _stamps(self.bases.folder)
        if keep:
            print(f"kept: {folder}; {answer}")
        else:
            shutil.rmtree(folder)
        return Outcome(kind, number, self.seed, case.said, case.arguments, answer.code, line, problems, round(answer.seconds, 3))

    def _hung(self, kind: str, number: int, case: Case) -> None:
        """Not even the alarm got through (a library waits in its own code): nothing is left but to end here."""
        with open(self.terminal, "w") as terminal:
            print(f"{kind} {number} ({case.said}): hangs", file=terminal, flush=True)
            faulthandler.dump_traceback(terminal)
        os._exit(1)


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@contextmanager
def prepared(folder: Path, seed: int, *, memory_bytes: int | None = MEMORY_BYTES) -> Iterator[Fuzz]:
    """Bases in `folder`, no Ray, no downloads, and no more memory than `memory_bytes` besides what is taken already."""

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise OSError("no network in this bench")

    (folder / "bases").mkdir()
    bases = make_bases(folder / "bases")
    run_sweep, download = driver.run_sweep, torch.hub.download_url_to_file
    cache = os.environ.get(CACHE_VARIABLE)
    driver.run_sweep, torch.hub.download_url_to_file = first_jobs, refuse
    os.environ[CACHE_VARIABLE] = str(folder / "copies")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    if memory_bytes is not None:
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, limits[1]))
    try:
        with places_of_our_own(folder):
            yield Fuzz(bases, seed)
    finally:
        os.environ.pop(CACHE_VARIABLE)
        if cache is not None:
            os.environ[CACHE_VARIABLE] = cache
        resource.setrlimit(resource.RLIMIT_AS, limits)
        driver.run_sweep, torch.hub.download_url_to_file = run_sweep, download


def plan(cases: int, only: str | None) -> list[tuple[str, int]]:
    """Kinds and numbers; at least `cases`, of every beginning of which each kind has its share."""
    kinds = {only: 100} if only else {kind: share for kind, (_, share) in KINDS.items()}
    counts = {kind: -(-cases * share // sum(kinds.values())) for kind, share in kinds.items()}
    planned = [(kind, number) for kind, count in counts.items() for number in range(count)]
    return sorted(planned, key=lambda case: case[1] / counts[case[0]])


def main() -> None:
    """Run, print, write, and exit with 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--case", type=int, help="one case of --only, its folder kept")
    arguments = parser.parse_args()
    wanted = plan(arguments.cases, arguments.only) if arguments.case is None else [(arguments.only, arguments.case)]
    started, keep = time.monotonic(), arguments.case is not None
    parts = [wanted[number :: arguments.processes] for number in range(arguments.processes)]
    if len(parts) == 1:
        outcomes = run_cases(wanted, arguments.seed, keep=keep)
    else:
        with ProcessPoolExecutor(len(parts), multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(run_cases, part, arguments.seed) for part in parts]
            try:
                wait(futures)
            except KeyboardInterrupt:  # which the others get as well
                print("ended by Ctrl-C", flush=True)
            outcomes = [outcome for future in futures for outcome in future.result()]
    if not keep:
        report(outcomes, arguments, time.monotonic() - started)
    sys.exit(1 if any(outcome.problems for outcome in outcomes) else 0)


def run_cases(wanted: list[tuple[str, int]], seed: int, *, keep: bool = False) -> list[Outcome]:
    """The cases one after the other, each failure told as it happens; until Ctrl-C."""
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="fewshot-ray-fuzz-"))
    outcomes: list[Outcome] = []
    with suppress(KeyboardInterrupt), prepared(folder, seed) as fuzz:
        for kind, number in wanted:
            outcome = fuzz.case(kind, number, keep=keep)
            outcomes.append(outcome)
            if outcome.problems or keep:
                print(f"{kind} {number} ({outcome.said[:200]}): {'; '.join(outcome.problems)}: {outcome.line[:400]}", flush=True)
    if not keep:
        shutil.rmtree(folder)
    return outcomes


def report(outcomes: list[Outcome], arguments: argparse.Namespace, seconds: float) -> None:
    """Counts by kind and outcome, on the terminal and in results/fuzz.json."""
    counts = {kind: Counter(_verdict(outcome) for outcome in outcomes if outcome.kind == kind) for kind in KINDS}
    for kind, count in counts.items():
        if count:
            print(f"{kind:<12}" + "".join(f"{name} {count[name]:>5}   " for name in ("refused", "accepted", "failed")))
    failed = [outcome for outcome in outcomes if outcome.problems]
    print(f"{len(outcomes)} cases in {seconds:.0f} s, {len(failed)} failed, slowest {max(outcome.seconds for outcome in outcomes):.1f} s")
    if arguments.only is None:
        figures = {
            "cases": len(outcomes),
            "seconds": round(seconds, 1),
            "slowest_sec": max(outcome.seconds for outcome in outcomes),
            "kinds": {kind: dict(sorted(count.items())) for kind, count in counts.items()},
            "failures": [asdict(outcome) for outcome in failed],
        }
        command = f"python bench/faults/fuzz/fuzz.py --cases {arguments.cases} --seed {arguments.seed} --processes {arguments.processes}"
        print(write_result("fuzz", command, json.loads(json.dumps(figures))).relative_to(ROOT))


def _verdict(outcome: Outcome) -> str:
    return "failed" if outcome.problems else "refused" if outcome.code == 2 else "accepted"


if __name__ == "__main__":
    main()
