"""Which trials of a sweep end before their last step, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fewshot_ray.metrics.suite import METRICS
from fewshot_ray.search.curves import Noise, Point, best_of, has_turned, is_behind
from fewshot_ray.search.halving import SuccessiveHalving, early_grace
from fewshot_ray.search.sweep_folder import EvaluationRow, State
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.ranking import Merit, Ranking

LEVEL = 0.05
"""Share of the trials that have not turned, yet are found to have."""
FEWEST_LOOKS = 4
"""Evaluations of a trial with fewer than which the race stops hardly any: none after one, and few after two."""


@dataclass(frozen=True)
class Stop:
    """The end of a trial before its last step."""

    reason: str
    complete: bool
    """Whether it has had its best evaluation already, so that it counts as complete."""


class Stopping:
    """Asked after each evaluation whether the trial ends.

    Its answers depend on the evaluations and the ends of trials in their order alone, so replaying those on record brings it where it was.

    - A trial has turned, and is complete, where each objective is worse than at the best evaluation that keeps the constraints.
    - A trial of the sampler is behind, and is pruned, where by its forecast each objective will be worse at its last step than that of
      another one, which keeps the constraints, has been. Preset, plain fine-tuning and reruns aren't pruned: others are compared with them.
    - With `search.scheduler.asha`, successive halving prunes.

    Only a trial that is running or complete may win, so others aren't compared with one that was pruned or has failed: once it has ended,
    the front is as if it had never been there.

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
        """Trial -> objective -> its curve, of the running trials and those of `complete`."""
        self.best: dict[str, Mapping[str, float]] = {}
        """The running trials of the search, with their best evaluation that keeps the constraints."""
        self.complete: dict[str, Mapping[str, float]] = {}
        """The complete trials of the search that no other complete one dominates, with theirs."""
        self.front: dict[str, Mapping[str, float]] = {}
        """Those of both that no other one dominates."""
        self.warnings: list[str] = []
        """What is doubtful in the settings, a line each."""
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
        stopping = cls(ranking, early=LEVEL if file.train.early_stopping else None, race=race, halving=halving)
        if halving is not None and (line := early_grace(halving.config, steps)) is not None:
            stopping.warnings.append(line)
        if race is not None and (line := _few_looks(steps, file.evaluate.every)) is not None:
            stopping.warnings.append(line)
        return stopping

    def report(self, trial_id: str, row: EvaluationRow, *, looks: int, last_step: int, searched: bool, may_lose: bool) -> Stop | None:
        """Take an evaluation; returns why the trial ends, or None where it goes on.

        `looks`: number of evaluations of the whole trial, which ends at `last_step`; `searched`: whether it is one of the
        search, so that others are compared with it; `may_lose`: whether it may be pruned.
        """
        self._add(trial_id, row, searched=searched)
        halved = self.halving.report(trial_id, row.step, row.metrics) if self.halving is not None and searched else False
        if searched and self.ranking.merit(row.metrics)[0] == 0:
            if self.ranking.is_better(row.metrics, self.best.get(trial_id)):
                self.best[trial_id] = row.metrics
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
        """Whether it has had an evaluation of a trial that is running, or one of the best complete ones."""
        return trial_id in self.curves

    def ended(self, trial_id: str, state: State) -> None:
        """The trial has ended; its curve is forgotten unless it is complete and no other complete one dominates it.

        Where it isn't complete, those that only it dominated are on the front again.
        """
        best = self.best.pop(trial_id, None)
        outdone = [trial_id] if best is None or state != "COMPLETE" else self._join(self.complete, trial_id, best)
        for name in outdone:
            self.curves.pop(name, None)
        if [name for name in outdone if self.front.pop(name, None) is not None]:
            for name, metrics in {**self.complete, **self.best}.items():
                self._enter(name, metrics)
        if self.halving is not None and state == "FAIL":
            self.halving.failed(trial_id)

    def _add(self, trial_id: str, row: EvaluationRow, *, searched: bool) -> None:
        curves = self.curves.setdefault(trial_id, {name: [] for name in self.ranking.objectives})
        kept = self.ranking.excess(row.metrics) == 0
        for name, direction in self.ranking.objectives.items():
            value = row.metrics.get(name, math.nan)
            curves[name].append(Point(row.step, value if direction == "min" else -value, row.images_of(name), kept))
            if searched:
                self.noise[name].add(curves[name])

    def _enter(self, trial_id: str, metrics: Mapping[str, float]) -> None:
        """Put the trial on the front with an evaluation that keeps the constraints, unless that is dominated, or worse than one there."""
        if self.ranking.is_better(metrics, self.front.get(trial_id)):
            self._join(self.front, trial_id, metrics)

    def _join(self, front: dict[str, Mapping[str, float]], trial_id: str, metrics: Mapping[str, float]) -> list[str]:
        """Put a trial on a front, unless it is dominated; returns who isn't on it therefore: the trial, or those that it dominates.

        Of equal ones the first stays.
        """
        merit = self.ranking.merit(metrics)
        others = {name: self.ranking.merit(best) for name, best in front.items() if name != trial_id}
        if any(_as_good(other, merit) for other in others.values()):
            return [trial_id]
        front[trial_id] = metrics
        dominated = [name for name, other in others.items() if _as_good(merit, other)]
        for name in dominated:
            del front[name]
        return dominated

    def _turned(self, trial_id: str, level: float) -> int | None:
        """The step of the best evaluation of a trial that has turned in every objective."""
        curves = self.curves[trial_id]
        if not all(has_turned(curve, level, self.noise[name].deviation()) for name, curve in curves.items()):
            return None
        best = best_of(next(iter(curves.values())))
        return best.step if best is not None else None

    def _ahead(self, trial_id: str, last_step: int, level: float) -> str | None:
        """A trial of the front that this one is behind of in every objective."""
        own = self.curves[trial_id]

        def is_behind_of(name: str, rival: Point | None) -> bool:
            return rival is not None and is_behind(own[name], rival, last_step, level, self.noise[name].deviation())

        for other in self.front:
            best = {name: best_of(curve) for name, curve in self.curves[other].items()}
            if other != trial_id and all(is_behind_of(name, rival) for name, rival in best.items()):
                return other
        return None


def _as_good(one: Merit, other: Merit) -> bool:
    """Whether one is nowhere worse than another."""
    return all(a <= b for a, b in zip(one, other, strict=True))


def _few_looks(steps: int, every: int) -> str | None:
    """A warning where a trial has few evaluations for a race."""
    if (looks := math.ceil(steps / every)) >= FEWEST_LOOKS:
        return None
    have = f"a trial has {looks} evaluation{'s' if looks > 1 else ''}, so hardly any is stopped"
    return f"search.scheduler.race: {have}; an evaluate.every of at most {max(1, steps // FEWEST_LOOKS)} is right"
