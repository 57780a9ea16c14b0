"""Runs jobs side by side, and keeps what each of them found, so that a run that was stopped goes on."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def by_seed(
    run_arm: Callable[..., dict[str, Any]], benchmark: Any, arms: Sequence[str], seeds: int, processes: int, kept: Path | None
) -> list[dict[str, dict[str, Any]]]:
    """`run_arm(benchmark, arm, seed, cache)` of every arm and seed, as `results` runs them: for each seed the records by arm."""
    finished: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as cache:
        jobs = {f"{benchmark.name}-{arm}-{seed}": (benchmark, arm, seed, cache) for seed in range(seeds) for arm in arms}
        for one in results(run_arm, jobs, processes, kept):
            finished.append(one)
            print(f"seed {one['seed']}, {one['arm']}: {one['cpu_sec']:.0f} s of CPU time", flush=True)
    return [{one["arm"]: one for one in finished if one["seed"] == seed} for seed in range(seeds)]


def results(
    function: Callable[..., dict[str, Any]], jobs: Mapping[str, tuple[Any, ...]], processes: int, kept: Path | None
) -> Iterator[Any]:
    """Yield `function(*arguments)` of every job, as they end; where `kept` holds NAME.json that is what it found, and nothing is run."""
    found = {name: kept / f"{name}.json" for name in jobs} if kept else {}
    for path in found.values():
        if path.exists():
            yield json.loads(path.read_text())
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        left = {pool.submit(function, *job): name for name, job in jobs.items() if name not in found or not found[name].exists()}
        for future in as_completed(left):
            if left[future] in found:
                path = found[left[future]]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".tmp").write_text(json.dumps(future.result()))
                path.with_suffix(".tmp").rename(path)
            yield future.result()
