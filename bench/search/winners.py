"""Whether a search's winner keeps a constraint that a tenth of the space keeps, and its whole front can be exported; on recorded curves.

python bench/search/winners.py [--replays 25]

On each split but the first, in TRIALS trials: searches for the least held-out loss under a bound on the coverage, or on the number of
modes, that a tenth of the configurations keep at some evaluation; and searches for the least held-out loss and the largest pairwise
distance, whose trials write a checkpoint at each evaluation, so that those are there at the end which `KeptCheckpoints` keeps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from bench.machine import write_result
from bench.search.efficiency import read
from bench.search.replay import Table, Trial, replay
from bench.search.searches import Ours, OurStopping, TrialByTrial
from bench.search.spaces import SPACES
from fewshot_ray.search.kept_checkpoints import CHECKPOINTS, KeptCheckpoints
from fewshot_ray.search.sweep_folder import SweepFolder, TrialRecord, trial_id
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.storage import Folder
from fewshot_ray.training.checkpoint import checkpoint_name, saved_steps
from fewshot_ray.trial.ranking import Ranking

SPACE, LOSS = "digits", "holdout_loss"
TRIALS = 60
BOUNDED = ("coverage", "modes")


def bound(table: Table, metric: str) -> float:
    """What a tenth of the configurations reach in a metric at some evaluation."""
    best = np.sort(np.nanmax(table.metrics[metric], axis=1))[::-1]
    return float(best[round(0.1 * len(best)) - 1])


def trials(table: Table, seed: int, objectives: Mapping[str, str], constraints: Mapping[str, str]) -> tuple[list[Trial], SearchSpec]:
    """The trials of a search with the race, and its settings."""
    search = Ours(table, objectives, seed, TRIALS, constraints)
    steps = TrialByTrial(table, LOSS, search, OurStopping(table, search.ranking))
    return list(replay(steps, table, workers=1, enough=lambda _, __, count: count > TRIALS).trials[:TRIALS]), search.settings


def evaluations(table: Table, trial: Trial) -> list[Mapping[str, float]]:
    """The metrics of a trial's evaluations."""
    return [table.row(trial.configuration, at).metrics for at in range(trial.done)]


def best(table: Table, trial: Trial, ranking: Ranking) -> int:
    """The number of a trial's best evaluation."""
    index = ranking.best_index(evaluations(table, trial))
    assert index is not None
    return index


def keeps(table: Table, seed: int, metric: str) -> bool:
    """Whether the winner of a search keeps the bound."""
    found, settings = trials(table, seed, {LOSS: "min"}, {metric: f">= {bound(table, metric):.6g}"})
    ranking = Ranking.of(settings)
    complete = [trial for trial in found if is_complete(trial)]
    values = [evaluations(table, trial)[best(table, trial, ranking)] for trial in complete]
    winner = ranking.best_index(values)
    return winner is not None and ranking.excess(values[winner]) == 0


def is_complete(trial: Trial) -> bool:
    """Whether it wasn't pruned."""
    return trial.stopped is None or bool(trial.extra.get("complete"))


def without_checkpoint(table: Table, seed: int) -> tuple[int, int]:
    """The size of a search's front, and the number of those on it without their best evaluation's checkpoint."""
    found, settings = trials(table, seed, {LOSS: "min", "pairwise_distance": "max"}, {})
    ranking = Ranking.of(settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = SweepFolder(Folder(scratch))
        kept = KeptCheckpoints(folder, settings)
        values = []
        for trial in found:
            rows, step = evaluations(table, trial), table.every * (best(table, trial, ranking) + 1)
            values.append(rows[step // table.every - 1] if is_complete(trial) else {})
            checkpoints = folder.trial(trial_id(trial.number)) / CHECKPOINTS
            for at in range(trial.done):
                (checkpoints / checkpoint_name(table.every * (at + 1))).write_text("weights", "")
            state = "COMPLETE" if is_complete(trial) else "PRUNED"
            record: dict[str, Any] = {"number": trial.number, "kind": "search", "origin": "sampler", "label": "", "seed": 0, "state": state}
            kept.ended(TrialRecord(id=trial_id(trial.number), best_step=step, values=values[-1] or None, **record))
        kept.tidy()
        front = ranking.front(values)
        there = [saved_steps(folder.trial(trial_id(index)) / CHECKPOINTS) for index in front]
        steps = [table.every * (best(table, found[index], ranking) + 1) for index in front]
        return len(front), sum(step not in one for step, one in zip(steps, there, strict=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=25, help="seeds on each split")
    arguments = parser.parse_args()
    tables = [read(SPACE, split) for split in range(1, SPACES[SPACE].splits)]
    cases = [(table, seed) for table in tables for seed in range(arguments.replays)]
    figures: dict[str, Any] = {"replays": len(cases)}
    for metric in BOUNDED:
        figures[f"winners that keep the bound on {metric}"] = sum(keeps(table, seed, metric) for table, seed in cases)
        print(f"bound on {metric}: kept by {figures[f'winners that keep the bound on {metric}']} of {len(cases)} winners", flush=True)
    sizes, missing = zip(*(without_checkpoint(table, seed) for table, seed in cases), strict=True)
    figures |= {"members of fronts": sum(sizes), "of these without a checkpoint": sum(missing)}
    print(f"fronts: {sum(sizes)} members in {len(cases)} searches, {sum(missing)} without a checkpoint")
    print(f"{write_result('winners', f'python bench/search/winners.py --replays {arguments.replays}', figures)} written")


if __name__ == "__main__":
    main()
