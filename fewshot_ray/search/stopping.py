"""Which trials of a sweep end before their last step, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.search.curves import Noise, Point, best_of, has_turned, is_behind
from fewshot_ray.search.halving import SuccessiveHalving, early_grace
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.ranking import Ranking

LEVEL = 0.05
"""Share of the trials that have not turned, yet are found to have."""
BY_IMAGE = "holdout_loss"
"""The metric of which a row has the value of each held-out image."""


@dataclass(frozen=True)
class Stop:
    """The end of a trial before its last step."""

    reason: str
    complete: bool
    """Whether it has had its best evaluation already, so that it counts as complete."""


class Stopping:
    """Asked after each evaluation whether the trial ends.

    Its answers depend on the evaluations in their order alone, so replaying the recorded ones brings it where it was.

    - A trial has turned, and is complete, where each objective is worse than at the best evaluation that keeps the constraints.
    - A trial of the sampler is behind, and is pruned, where another one that keeps the constraints would be better in each objective at the
      last step. Preset, plain fine-tuning and reruns are never pruned, since others are compared with them.
    - With `search.scheduler.asha`, successive halving prunes.

    The level of a test is shared among the evaluations of a whole trial (Bonferroni), as each of them is a look at the same curve.
    """

    def __init__(
        self, ranking: Ranking, *, early: float | None = None, race: float | None = None, halving: SuccessiveHalving | None = None
    ) -> None:
        """`early`, `race`: the levels of the tests; None leaves that rule out."""
        self.ranking = ranking
        self.early = early
        self.race = race
        self.halving = halving
        self.curves: dict[str, dict[str, list[Point]]] = {}
        """Trial -> objective -> its curve, of the running trials and those of `front`."""
        self.over: set[str] = set()
        """The trials of `front` that have ended."""
        self.front: dict[str, Mapping[str, float]] = {}
        """The trials of the search that no other one dominates, with their best evaluation."""
        self.noise = {name: Noise() for name in ranking.objectives}

    @classmethod
    def of(cls, document: Document, file: FileSpec) -> Stopping:
        """The rules of a run's file."""
        steps = max(FileSpec.model_validate(tree).train.steps for tree in endpoint_trees(document.tree))
        ranking, scheduler = Ranking.of(file.search), file.search.scheduler
        halving = None
        if scheduler is not None and scheduler.asha is not None:
            metric = scheduler.asha.metric
            own = ranking if metric is None else Ranking({metric: METRICS[metric].direction}, ranking.bounds)
            halving = SuccessiveHalving(scheduler.asha, own, steps=steps)
        race = scheduler.race.level if scheduler is not None and scheduler.race is not None else None
        return cls(ranking, early=LEVEL if file.train.early_stopping else None, race=race, halving=halving)

    def warnings(self) -> list[str]:
        """What is doubtful in the settings, a line each."""
        return [] if self.halving is None or (line := early_grace(self.halving.config, self.halving.steps)) is None else [line]

    def report(self, trial_id: str, row: EvaluationRow, *, looks: int, last_step: int, searched: bool, may_lose: bool) -> Stop | None:
        """Take an evaluation; returns why the trial ends, or None where it goes on.

        `looks`: number of evaluations of the whole trial, which ends at `last_step`; `searched`: whether it is one of the
        search, so that others are compared with it; `may_lose`: whether it may be pruned.
        """
        self._add(trial_id, row, searched=searched)
        halved = self.halving.report(trial_id, row.step, row.metrics) if self.halving is not None and searched else False
        if searched:
            self._enter(trial_id, row.metrics)
        if row.step >= last_step:
            return None
        if self.early is not None and (step := self._turned(trial_id, self.early / looks)) is not None:
            return Stop(f"turned: its best evaluation was at step {step}", complete=True)
        if not may_lose:
            return None
        if halved:
            return Stop(f"halving: not among the best of step {row.step}", complete=False)
        if self.race is not None and (other := self._ahead(trial_id, last_step, self.race / looks)) is not None:
            return Stop(f"race: behind {other}", complete=False)
        return None

    def knows(self, trial_id: str) -> bool:
        """Whether it has had an evaluation of a trial that is running, or on the front."""
        return trial_id in self.curves

    def ended(self, trial_id: str) -> None:
        """The trial has ended; its curve is forgotten unless others are compared with it."""
        self.over.add(trial_id)
        if trial_id not in self.front:
            self._forget(trial_id)

    def _forget(self, trial_id: str) -> None:
        self.over.discard(trial_id)
        self.curves.pop(trial_id, None)

    def _add(self, trial_id: str, row: EvaluationRow, *, searched: bool) -> None:
        curves = self.curves.setdefault(trial_id, {name: [] for name in self.ranking.objectives})
        kept = self.ranking.excess(row.metrics) == 0
        for name, direction in self.ranking.objectives.items():
            value = row.metrics.get(name, math.nan)
            images = tuple(row.image_losses) if name == BY_IMAGE else ()
            curves[name].append(Point(row.step, value if direction == "min" else -value, images, kept))
            if searched:
                self.noise[name].add(curves[name])

    def _enter(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Put the trial on the front with an evaluation, unless that is dominated; what it dominates is removed."""
        merit = self.ranking.merit(metrics)
        if merit[0] > 0 or not self.ranking.is_better(metrics, self.front.get(trial_id)):
            return
        others = {name: self.ranking.merit(best) for name, best in self.front.items() if name != trial_id}
        if any(all(a <= b for a, b in zip(other, merit, strict=True)) for other in others.values()):
            return
        self.front[trial_id] = metrics
        for name in [name for name, other in others.items() if all(a <= b for a, b in zip(merit, other, strict=True))]:
            del self.front[name]
            if name in self.over:
                self._forget(name)

    def _turned(self, trial_id: str, level: float) -> int | None:
        """The step of the best evaluation of a trial that has turned in every objective."""
        curves = self.curves[trial_id]
        if not all(has_turned(curve, level, self.noise[name].deviation()) for name, curve in curves.items()):
            return None
        best = best_of(next(iter(curves.values())))
        return best.step if best is not None else None

    def _ahead(self, trial_id: str, last_step: int, level: float) -> str | None:
        """A trial of the front that this one is behind of in every objective."""
        own, noise = self.curves[trial_id], {name: one.deviation() for name, one in self.noise.items()}
        for other in self.front:
            theirs = self.curves[other]
            if other != trial_id and all(is_behind(own[name], theirs[name], last_step, level, noise[name]) for name in own):
                return other
        return None
