"""What the reruns on fresh seeds say: how far the search's own value was off, and the comparison with plain fine-tuning."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fewshot_ray.search.leaderboard import LeaderboardRow, contenders, control_id, tuned_plain, winner
from fewshot_ray.search.paired import FEWEST_SEEDS, Interval, Verdict, paired_interval
from fewshot_ray.spec.sections import SearchSpec


@dataclass(frozen=True)
class PairedComparison:
    """A confirmed trial compared with plain fine-tuning, paired by seed: confirm minus control."""

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
    tuned: str | None = None
    """The trial of plain fine-tuning's own search that it is compared with; None where that has the same `train` values."""

    @property
    def verdict(self) -> Verdict:
        """The conclusion from the interval for the confirmed trial, by the metric's direction."""
        return self.interval.verdict(self.direction)

    def describe(self) -> str:
        """The comparison in one line."""
        means = f"{self.confirm_mean:.4g} against plain fine-tuning's {self.control_mean:.4g}"
        means += "" if self.tuned is None else f" with its own best values ({self.tuned})"
        return f"{self.trial_id}, {self.metric}: {means}, difference {_in_words(self.interval)}: {self.verdict}"


@dataclass(frozen=True)
class SelectionBias:
    """The search's own value of a trial minus its mean over fresh seeds: the best of many owes some of its value to chance."""

    trial_id: str
    metric: str
    direction: Literal["min", "max"]
    search_value: float
    fresh_mean: float
    seeds: tuple[int, ...]
    """The seeds whose reruns are complete; none of them chose the trial."""
    interval: Interval
    """Confidence interval of the difference, by how the fresh seeds vary."""

    def describe(self) -> str:
        """The difference in one line."""
        values = f"{self.search_value:.4g} in the search, {self.fresh_mean:.4g} on fresh seeds"
        words = {"better": ": the search's value was too good", "worse": ": the search's value was too bad"}
        found = words.get(self.interval.verdict(self.direction), "")
        return f"{self.trial_id}, {self.metric}: {values}, difference {_in_words(self.interval)}{found}"


def _in_words(interval: Interval) -> str:
    difference, low, high, seeds = interval
    within = f", 95 % interval {low:+.4g} .. {high:+.4g}" if seeds > 1 else ""
    return f"{difference:+.4g}{within} ({seeds} seed{'s' if seeds > 1 else ''})"


def confirmation_lines(rows: Sequence[LeaderboardRow], search: SearchSpec) -> list[str]:
    """What is known from fresh seeds, a line each: who was chosen on which, the search's value against theirs, the comparisons."""
    biases = (bias.describe() for bias in selection_bias(rows, search))
    return [*_choice(rows, search), *biases, *(comparison.describe() for comparison in compare_with_control(rows, search))]


def _choice(rows: Sequence[LeaderboardRow], search: SearchSpec) -> Iterator[str]:
    """Which seeds chose among several winners, once they are all there."""
    best, confirm, chosen = contenders(rows, search), search.confirm, winner(rows)
    if confirm is None or chosen is None or len(best) < 2:
        return
    ended = {row.trial.id for row in rows if row.trial.state != "RUNNING"}
    if not {f"confirm-{row.trial.id}-seed{seed}" for row in best for seed in confirm.choosing} <= ended:
        return
    report = f"reported on {_seeds(confirm.reporting)}" if confirm.reporting else "no seed is left to report it on"
    few = f", too few for a verdict ({FEWEST_SEEDS})" if 0 < len(confirm.reporting) < FEWEST_SEEDS else ""
    yield f"{chosen.trial.id} chosen among {', '.join(row.trial.id for row in best)} on {_seeds(confirm.choosing)}; {report}{few}"


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def selection_bias(rows: Sequence[LeaderboardRow], search: SearchSpec) -> list[SelectionBias]:
    """How far the search's value of every confirmed trial was off, for each objective, by the seeds that report; empty without any."""
    found = []
    searched = {row.trial.id: row.values for row in rows if row.trial.kind == "search"}
    for source, runs in _by_source(rows, "confirm", search).items():
        for metric, direction in search.objectives.items():
            value = searched.get(source, {}).get(metric, math.nan)
            fresh = {seed: run[metric] for seed, run in runs.items() if math.isfinite(run.get(metric, math.nan))}
            if math.isfinite(value) and fresh:
                interval = paired_interval([value - one for one in fresh.values()])
                found.append(SelectionBias(source, metric, direction, value, statistics.fmean(fresh.values()), tuple(fresh), interval))
    return found


def compare_with_control(rows: Sequence[LeaderboardRow], search: SearchSpec) -> list[PairedComparison]:
    """Comparisons of every confirmed trial with its control, for each objective, on the seeds that report and both completed."""
    controls = _by_source(rows, "control", search)
    tuned = tuned_plain(rows, search) if search.confirm is not None and search.confirm.plain == "tuned" else None
    comparisons = []
    for source, runs in _by_source(rows, "confirm", search).items():
        control = controls.get(source, {})
        for metric, direction in search.objectives.items():
            pairs = {
                seed: (runs[seed].get(metric, math.nan), control[seed].get(metric, math.nan))
                for seed in sorted(runs.keys() & control.keys())
            }
            pairs = {seed: pair for seed, pair in pairs.items() if all(map(math.isfinite, pair))}
            if pairs:
                paired = _paired(source, metric, direction, pairs)
                comparisons.append(paired if tuned is None else replace(paired, tuned=tuned.trial.id))
    return comparisons


def _by_source(rows: Sequence[LeaderboardRow], kind: str, search: SearchSpec) -> dict[str, dict[int, Mapping[str, float]]]:
    """Id of the search trial -> seed -> values, of the complete reruns of that kind on the seeds that report."""
    seeds = search.confirm.reporting if search.confirm is not None else []
    found: dict[str, dict[int, Mapping[str, float]]] = {}
    is_tuned = search.confirm is not None and search.confirm.plain == "tuned"
    best = tuned_plain(rows, search) if is_tuned else None
    for row in rows:
        trial, tuned = row.trial, None if best is None else best.trial.id
        is_other = kind == "control" and trial.id != control_id(trial.origin, trial.seed, tuned)  # of a trial that has been beaten since
        if trial.kind == kind and trial.state == "COMPLETE" and trial.seed in seeds and not is_other:
            found.setdefault(row.trial.origin, {})[row.trial.seed] = row.values
    return found


def _paired(source: str, metric: str, direction: Literal["min", "max"], pairs: Mapping[int, tuple[float, float]]) -> PairedComparison:
    confirm_mean, control_mean = (statistics.fmean(side) for side in zip(*pairs.values(), strict=True))
    interval = paired_interval([confirm - control for confirm, control in pairs.values()])
    return PairedComparison(source, metric, direction, tuple(pairs), confirm_mean, control_mean, interval)
