"""Whether a sweep's result is better than the source model as it is, and whether it has moved from it at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fewshot_ray.search.curves import FEWEST_IMAGES, Point, is_worse
from fewshot_ray.search.leaderboard import LeaderboardRow, winner
from fewshot_ray.spec.sections import SearchSpec

LEVEL = 0.05
"""Of the one-sided test that the result is better."""
NEARLY_THE_SOURCE = 0.25
"""Below this `drift` samples count as the source's: a quarter of the distance between two different ones of the source's."""
DRIFT = "drift"
REMEDY = "a higher train.lr, more train.steps or another objective is right"


@dataclass(frozen=True)
class AgainstSource:
    """The result compared with the source by the first objective."""

    trial_id: str
    metric: str
    value: float
    source: float
    shown: bool | None
    """Whether the test shows that the result is better; None where nothing is known of the values' noise."""
    how: str
    """What the test rests on."""
    drift: float | None
    """The result's `drift`, where it is measured."""

    @property
    def has_moved(self) -> bool:
        """Whether the samples differ from the source's."""
        return self.drift is None or self.drift >= NEARLY_THE_SOURCE

    def describe(self) -> str:
        """The comparison in one line, with what to do where the result isn't better or hasn't moved."""
        share = f" by {100 * abs(self.value - self.source) / abs(self.source):.2g} %" if self.source else ""
        words = {True: f"better{share}", False: "not shown to be better", None: f"better{share}, with a noise that isn't known"}
        text = (
            f"{self.trial_id}, {self.metric}: {self.value:.4g} against the source model's {self.source:.4g}: {words[self.shown]}{self.how}"
        )
        if not self.has_moved:
            joined = "but" if self.shown is not False else "and"
            text += (
                f", {joined} its samples are nearly the source's ({DRIFT} {self.drift:.2g}, where 1 is the distance between two of these)"
            )
        return text if self.shown is not False and self.has_moved else f"{text}; {REMEDY}"


def against_source(rows: Sequence[LeaderboardRow], search: SearchSpec) -> AgainstSource | None:
    """The comparison of the result with the source; None where there is no result, or the source wasn't measured."""
    best, source = winner(rows), next((row for row in rows if row.trial.kind == "source"), None)
    metric, direction = next(iter(search.objectives.items()))
    if best is None or source is None:
        return None
    ours, theirs = best.values.get(metric, math.nan), source.values.get(metric, math.nan)
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return None
    shown, how = _shown(best, source, metric, direction)
    return AgainstSource(best.trial.id, metric, ours, theirs, shown, how, best.values.get(DRIFT))


def source_lines(rows: Sequence[LeaderboardRow], search: SearchSpec) -> list[str]:
    """What is to be said of the result beside the source: one line, or none."""
    found = against_source(rows, search)
    return [] if found is None else [found.describe()]


def _shown(best: LeaderboardRow, source: LeaderboardRow, metric: str, direction: Literal["min", "max"]) -> tuple[bool | None, str]:
    """Whether the best one is better, by the paired test over held-out images, else by the values' standard errors; and by which."""
    sign = 1 if direction == "min" else -1
    ours, theirs = (Point(row.step or 0, sign * row.values[metric], row.images) for row in (best, source))
    errors = [row.values.get(f"{metric}_stderr", math.nan) for row in (best, source)]
    noise = math.hypot(*errors) / math.sqrt(2) if all(map(math.isfinite, errors)) else None
    is_better = is_worse(theirs, ours, LEVEL, noise)
    if len(best.images) == len(source.images) >= FEWEST_IMAGES:
        return is_better, f" (paired over {len(best.images)} held-out images)"
    if noise is not None:
        return is_better, " (by their standard errors)"
    return (None if ours.value < theirs.value else False), ""
