"""What the driver of a sweep costs besides the sampler: time, requests to the storage and their bytes, by the number of trials.

python bench/search/scale.py [--trials 100 1000] [--workers 100]

A sweep in an object store in memory, without Ray and without training: as many trials at a time as there are workers, four evaluations
each. The time of an event (a trial is proposed, evaluated or ends) is that of the state machine without the sampler's own `ask`. The sweep
draws at random; after it TPE is asked, this project's and Optuna's alone, each with these trials in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import optuna

from bench.machine import write_result
from fewshot_ray.search.distributions import distribution
from fewshot_ray.search.frozen_trials import ORIGIN
from fewshot_ray.search.job import Job
from fewshot_ray.search.sampling import Sampling
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.storage import Folder
from tests.search import synthetic

REQUESTS = ("read_bytes", "write_bytes", "names", "exists", "remove")
REPEATS = 5


class Counted:
    """Counts a folder's requests and their bytes, and times the sampler."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.bytes = 0
        self.sampler_sec = 0.0

    def request(self, name: str) -> Any:
        """`Folder`'s method of that name, counted."""
        original = getattr(Folder, name)

        def counted(folder: Folder, *arguments: Any) -> Any:
            self.requests[name] += 1
            result = original(folder, *arguments)
            self.bytes += sum(len(one) for one in (*arguments, result) if isinstance(one, bytes))
            return result

        return counted

    def timed_ask(self) -> Callable[[Sampling, int, int], dict[str, Any]]:
        """`Sampling.ask`, timed."""
        original = Sampling.ask

        def ask(sampling: Sampling, number: int, earlier: int) -> dict[str, Any]:
            started = time.perf_counter()
            values = original(sampling, number, earlier)
            self.sampler_sec += time.perf_counter() - started
            return values

        return ask


class NoBoards:
    """In place of TensorBoard's events, which a thread of their own writes."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def simulated(trials: int, workers: int) -> dict[str, float]:
    """Run a sweep of so many trials on so many workers."""
    counted = Counted()
    with ExitStack() as stack:
        stack.enter_context(patch.object(synthetic, "Boards", NoBoards))
        stack.enter_context(patch.object(Sampling, "ask", counted.timed_ask()))
        for name in REQUESTS:
            stack.enter_context(patch.object(Folder, name, counted.request(name)))
        file = synthetic.file(search={"trials": trials, "sampler": "random"})
        sweep = synthetic.open_sweep(Folder(f"memory://{uuid4().hex}"), file, concurrent=workers)
        started = time.perf_counter()
        events = run(sweep)
        seconds = time.perf_counter() - started
    ended = [one for one in sweep.study.study.get_trials(deepcopy=False) if one.user_attrs[ORIGIN] not in sweep.study.outside]
    sampling = Sampling(sweep.study.search.model_copy(update={"sampler": "tpe"}), sweep.study.space, seed=0)
    for trial in ended:
        sampling.add(trial)
    return {
        "events": events,
        "ms_per_event_without_the_sampler": 1e3 * (seconds - counted.sampler_sec) / events,
        "ms_of_an_ask_after_them": 1e3 * median(asked(sampling, len(ended) + repeat) for repeat in range(REPEATS)),
        "ms_of_optunas_ask_after_them": 1e3 * median(bare(ended, sampling)),
        "requests_per_trial": counted.requests.total() / trials,
        "bytes_per_trial": counted.bytes / trials,
        **{f"{name}_per_trial": counted.requests[name] / trials for name in REQUESTS},
    }


def run(sweep: Sweep) -> int:
    """Run a sweep to its end, an evaluation of each running trial in turn; returns the number of events."""
    running: deque[tuple[Job, Any]] = deque()
    events = 0
    while True:
        while isinstance(job := sweep.next_job(), Job):
            events += 1
            running.append((job, synthetic.evaluations(job)))
        if not running:
            return events
        job, rows = running.popleft()
        row = next(rows, None)
        events += 1
        if row is not None and not sweep.evaluated(job.id, row):
            running.append((job, rows))
        else:
            sweep.ended(job.id)


def asked(sampling: Sampling, number: int) -> float:
    """Seconds of an `ask` that isn't used, by a sampler that has proposed all `number` trials so far."""
    started = time.perf_counter()
    sampling.ask(number, number)
    seconds = time.perf_counter() - started
    sampling.discard()
    return seconds


def bare(trials: list[optuna.trial.FrozenTrial], sampling: Sampling) -> list[float]:
    """Seconds of Optuna's `ask` in memory, with the same trials and sampler."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0, multivariate=True, constant_liar=True))
    study.add_trials(trials)
    distributions = {name: distribution(parameter.range) for name, parameter in sampling.space.by_name.items()}
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        study.ask(distributions)
        times.append(time.perf_counter() - started)
    return times


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--workers", type=int, default=100)
    arguments = parser.parse_args()
    figures = {}
    for trials in arguments.trials:
        figures[str(trials)] = simulated(trials, arguments.workers)
        print(trials, {name: round(value, 3) for name, value in figures[str(trials)].items()}, flush=True)
    command = f"python bench/search/scale.py --trials {' '.join(map(str, arguments.trials))} --workers {arguments.workers}"
    print(f"{write_result('scale', command, {'workers': arguments.workers, 'trials': figures})} written")


if __name__ == "__main__":
    main()
