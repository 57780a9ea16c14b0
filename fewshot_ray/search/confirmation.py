"""Compares confirmed trials with plain fine-tuning, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fewshot_ray.search.leaderboard import LeaderboardRow
from fewshot_ray.search.paired import Interval, Verdict, paired_interval
from fewshot_ray.trial.ranking import Objectives


@dataclass(frozen=True)
class PairedComparison:
    """A confirmed trial compared with plain fine-tuning at its learning rate, paired by seed: confirm minus control."""

    trial_id: str
    """The search trial that was confirmed."""
    metric: str
    direction: Literal["min", "max"]
    seeds: tuple[int, ...]
    """The seeds that both have completed."""
    confirm_mean: float
    control_mean: float
    interval: Interval
    """Confidence interval of the mean difference."""

    @property
    def verdict(self) -> Verdict:
        """The conclusion from the interval for the confirmed trial, by the metric's direction."""
        return self.interval.verdict(self.direction)

    def describe(self) -> str:
        """The comparison in one line."""
        count, (difference, low, high, _) = len(self.seeds), self.interval
        interval = f", 95 % interval {low:+.4g} .. {high:+.4g}" if count > 1 else ""
        seeds = f"{count} seed{'s' if count > 1 else ''}"
        means = f"{self.confirm_mean:.4g} against plain fine-tuning's {self.control_mean:.4g}"
        return f"{self.trial_id}, {self.metric}: {means}, difference {difference:+.4g}{interval} ({seeds}): {self.verdict}"


def compare_with_control(rows: Sequence[LeaderboardRow], objectives: Objectives) -> list[PairedComparison]:
    """Comparisons of every confirmed trial with its control, for each objective, on the seeds that both completed; empty without any."""
    confirmed = _by_source(rows, "confirm")
    controls = _by_source(rows, "control")
    comparisons = []
    for source, runs in confirmed.items():
        control = controls.get(source, {})
        for metric, direction in objectives.items():
            pairs = {
                seed: (runs[seed].get(metric, math.nan), control[seed].get(metric, math.nan))
                for seed in sorted(runs.keys() & control.keys())
            }
            pairs = {seed: pair for seed, pair in pairs.items() if all(map(math.isfinite, pair))}
            if pairs:
                comparisons.append(_paired(source, metric, direction, pairs))
    return comparisons


def _by_source(rows: Sequence[LeaderboardRow], kind: str) -> dict[str, dict[int, Mapping[str, float]]]:
    """Id of the search trial -> seed -> values, of the complete reruns of that kind."""
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    for row in rows:
        if row.trial.kind == kind and row.trial.state == "COMPLETE":
            found.setdefault(row.trial.origin, {})[row.trial.seed] = row.values
    return found


def _paired(source: str, metric: str, direction: Literal["min", "max"], pairs: Mapping[int, tuple[float, float]]) -> PairedComparison:
    confirm_mean, control_mean = (statistics.fmean(side) for side in zip(*pairs.values(), strict=True))
    interval = paired_interval([confirm - control for confirm, control in pairs.values()])
    return PairedComparison(source, metric, direction, tuple(pairs), confirm_mean, control_mean, interval)
