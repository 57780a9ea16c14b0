"""From the arms' records of claims.py to paired differences: who is compared with whom, and what may be said of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.claims.arms import MEASURES, PLAIN, Benchmark, Measure, criterion, judged
from bench.claims.intervals import paired
from bench.claims.trials import MOMENTS, Moment, choose, name

QUESTIONS = ("tuned", "matched")
BySeed = Sequence[Mapping[str, Any]]
"""For each seed, the records of `run_arm` by arm."""
NOT_JUDGED = "not judged"


def winner(record: Mapping[str, Any], by: str, moment: Moment) -> dict[str, Any]:
    """What an arm chose on validation, with its test measures."""
    index, step = choose(record["trials"], by, moment)
    trial = record["trials"][index]
    return {"lr": trial["lr"], "setting": trial["setting"], "step": step, "test": record["test"][name(index, step)]}


def control(plain: Mapping[str, Any], chosen: Mapping[str, Any], by: str, moment: Moment, question: str) -> dict[str, Any]:
    """Plain fine-tuning's side. "tuned": its own winner. "matched": the trial of the method's learning rate and training seed."""
    if question == "tuned":
        return winner(plain, by, moment)
    same = [trial for trial in plain["trials"] if (trial["lr"], trial["setting"]) == (chosen["lr"], chosen["setting"])]
    index = plain["trials"].index(same[0])
    _, step = choose(same, by, moment)
    return {**chosen, "step": step, "test": plain["test"][name(index, step)]}


def cell(arm: str, measure: Measure, differences: Sequence[float]) -> dict[str, Any]:
    """Difference, interval and verdict."""
    found = paired(differences, measure.direction)
    return found if judged(arm, measure) else {**found, "verdict": NOT_JUDGED}


def comparisons(by_seed: BySeed, arms: Sequence[str]) -> dict[str, Any]:
    """`{"tuned/best": {arm: {measure: cell}}, ...}` for both questions and both moments."""
    table: dict[str, Any] = {}
    for question in QUESTIONS:
        for moment in MOMENTS:
            rows = {arm: _compared(by_seed, arm, moment, question) for arm in arms}
            table[f"{question}/{moment}"] = rows
    return table


def _compared(by_seed: BySeed, arm: str, moment: Moment, question: str) -> dict[str, Any]:
    by, pairs = criterion(arm), []
    for records in by_seed:
        chosen = winner(records[arm], by, moment)
        pairs.append((chosen["test"], control(records[PLAIN], chosen, by, moment, question)["test"]))
    return {m.name: cell(arm, m, [method[m.name] - plain[m.name] for method, plain in pairs]) for m in MEASURES}


def settings_table(by_seed: BySeed, benchmark: Benchmark, arms: Sequence[str]) -> dict[str, Any]:
    """Each setting beside plain at the same learning rates and training seed, last step: `{arm: [{measure: cell}, ...]}`.

    Nothing is chosen, so the validation images judge; a seed's difference is the mean over the learning rates.
    """
    return {
        arm: [
            {m.name: cell(arm, m, [_at_all_rates(records, arm, setting, m.name) for records in by_seed]) for m in MEASURES}
            for setting in range(len(benchmark.arms[arm]))
        ]
        for arm in arms
    }


def _at_all_rates(records: Mapping[str, Any], arm: str, setting: int, measure: str) -> float:
    last = {
        side: [trial["evaluations"][-1][measure] for trial in records[side]["trials"] if trial["setting"] == setting]
        for side in (arm, PLAIN)
    }
    return statistics.fmean(last[arm]) - statistics.fmean(last[PLAIN])


def levels(by_seed: BySeed) -> dict[str, dict[str, float]]:
    """Means over the seeds of the source model and of tuned plain fine-tuning, for scale."""
    models = {
        "source": [records[PLAIN]["test"]["source"] for records in by_seed],
        **{f"plain/{moment}": [winner(records[PLAIN], "holdout_loss", moment)["test"] for records in by_seed] for moment in MOMENTS},
    }
    return {model: {m.name: statistics.fmean(one[m.name] for one in measured) for m in MEASURES} for model, measured in models.items()}


def winners(by_seed: BySeed, arms: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What each arm chose, seed by seed, best checkpoint."""
    chosen = {arm: [winner(records[arm], criterion(arm), "best") for records in by_seed] for arm in (PLAIN, *arms)}
    return {arm: [{key: one[key] for key in ("lr", "setting", "step")} for one in found] for arm, found in chosen.items()}


def relative_cost(by_seed: BySeed, arms: Sequence[str]) -> dict[str, float]:
    """CPU time of an arm's trials over plain's, in the mean over the seeds."""
    return {arm: statistics.fmean(_trials_sec(records[arm]) / _trials_sec(records[PLAIN]) for records in by_seed) for arm in arms}


def _trials_sec(record: Mapping[str, Any]) -> float:
    return math.fsum(trial["cpu_sec"] for trial in record["trials"])
