"""How much each searched value mattered, by PED-ANOVA (Watanabe, Bansal and Hutter 2023)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewshot_ray.search.leaderboard import LeaderboardRow
from fewshot_ray.search.sweep_folder import SPEC, SweepFolder, read_spec
from fewshot_ray.spec.document import ranges
from fewshot_ray.spec.ranges import Range
from fewshot_ray.trial.ranking import Objectives

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FEWEST_TRIALS = 20
"""Trials below which nothing is said."""
BEST_SHARE = 0.1
"""Share of the trials that count as good, Optuna's default; at least BEST_TRIALS of them, which its documentation asks for."""
BEST_TRIALS = 5


@dataclass(frozen=True)
class Importance:
    """How much each searched value mattered for being among the best trials by one objective."""

    metric: str
    trials: int
    """Number of trials it rests on."""
    shares: Mapping[str, float]
    """Dotted path -> share, the largest first; the sum is 1."""

    def describe(self) -> str:
        """The shares in one line."""
        shares = ", ".join(f"{path} {100 * share:.0f} %" for path, share in self.shares.items())
        return f"importance for {self.metric} (PED-ANOVA, {self.trials} trials): {shares}"


def searched_ranges(sweep: SweepFolder) -> Mapping[str, Range]:
    """The ranges of a sweep by dotted path; none where its spec isn't there yet."""
    return ranges(read_spec(sweep.folder).tree) if sweep.folder.exists(SPEC) else {}


def importances(rows: Sequence[LeaderboardRow], searched: Mapping[str, Range], objectives: Objectives) -> list[Importance]:
    """One an objective, by the search's trials with their best evaluations, stopped ones too; without plain fine-tuning beside methods.

    Empty where fewer than FEWEST_TRIALS are measured, or fewer than two values are searched. Constraints aren't considered.
    """
    outside = any(path.startswith("method.") for path in searched)
    seen = [
        row
        for row in rows
        if row.trial.kind == "search"
        and row.trial.state in ("COMPLETE", "PRUNED")
        and not (outside and row.trial.origin == "plain")
        and all(searched[path].contains(value) for path, value in row.trial.params.items() if path in searched)
        and all(math.isfinite(row.values.get(metric, math.nan)) for metric in objectives)
    ]
    if len(seen) < FEWEST_TRIALS or len(searched) < 2:
        return []
    trials = _trials(seen, searched, objectives)
    found = [
        Importance(metric, len(seen), _shares(trials, place, direction)) for place, (metric, direction) in enumerate(objectives.items())
    ]
    return [one for one in found if one.shares]


def _trials(rows: Sequence[LeaderboardRow], searched: Mapping[str, Range], objectives: Objectives) -> list[FrozenTrial]:
    from optuna.trial import create_trial

    from fewshot_ray.search.distributions import distribution, to_optuna

    found = []
    for row in rows:
        params = {path: value for path, value in row.trial.params.items() if path in searched}
        found.append(
            create_trial(
                values=[row.values[metric] for metric in objectives],
                params={path: to_optuna(searched[path], value) for path, value in params.items()},
                distributions={path: distribution(searched[path]) for path in params},
            )
        )
    return found


def _shares(trials: Sequence[FrozenTrial], place: int, direction: str) -> dict[str, float]:
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize"] * len(trials[0].values))
    study.add_trials(trials)
    target: Callable[[FrozenTrial], float] = lambda trial: trial.values[place] if direction == "min" else -trial.values[place]  # noqa: E731
    evaluator = PedAnovaImportanceEvaluator(target_quantile=max(BEST_SHARE, BEST_TRIALS / len(trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = get_param_importances(study, evaluator=evaluator, target=target)
    optuna.logging.set_verbosity(before)
    return dict(sorted(shares.items(), key=lambda item: -item[1])) if all(map(math.isfinite, shares.values())) else {}
