"""A search's proposals and results as trials of an Optuna study (`FrozenTrial`), and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from fewshot_ray.search.distributions import distribution, to_optuna, values_of
from fewshot_ray.search.sweep_folder import EvaluationRow, FailedBy
from fewshot_ray.spec.space import Space

ORIGIN = "origin"
"""User attribute: one of ORIGINS."""
SAMPLER = "sampler"
PLAIN_ORIGIN = "plain"
EARLIER = "earlier"
"""Origin of a trial with the values of an earlier sweep's trial."""
ENTERED = "entered"
"""Origin of an earlier sweep's trial that entered the study with its result; it isn't trained and has no folder here."""
ORIGINS = ("preset", PLAIN_ORIGIN, "file", SAMPLER, EARLIER, ENTERED)
SWEEP, TRIAL = "sweep", "trial"
"""User attributes of these two: the earlier sweep's place, and the trial's id there."""
REPEATS = "repeats"
"""User attribute of a trial with known values: the number of the first one that has them."""
BEST = "best"
"""User attribute of a stopped trial: its best evaluation's objectives, in their order."""
FAILED_BY = "failed_by"
"""User attribute of a failed trial: as in its record (`TrialRecord.failed_by`)."""
ERROR = "error"
"""User attribute of a failed trial: why."""
STOPPED = "stopped"
"""User attribute of a trial that ended before its last step: why."""
TOLD = (BEST, FAILED_BY, ERROR, STOPPED)
"""The user attributes that say how a trial ended."""


@dataclass(frozen=True)
class Proposal:
    """A trial of the study, with its values by dotted path."""

    number: int
    values: dict[str, Any]
    origin: str
    state: TrialState
    repeats: int | None = None
    """The number of an earlier trial with the same values: this one gets its result and isn't trained."""
    taken_from: str | None = None
    """The earlier sweep's place and the trial's id there."""

    @property
    def is_trained(self) -> bool:
        """Whether it is trained in this sweep."""
        return self.repeats is None and self.origin != ENTERED


@dataclass(frozen=True)
class Result:
    """How a trial of the search ended."""

    state: TrialState
    """COMPLETE, PRUNED or FAIL."""
    values: Mapping[str, float] | None = None
    """Every metric of its best evaluation; None without one."""
    rows: Sequence[EvaluationRow] = ()
    excess: Mapping[str, float] | None = None
    """The violation of each constraint by its best evaluation."""
    error: str | None = None
    failed_by: FailedBy | None = None
    """Whether a failed one did by its values or by its worker."""
    stopped: str | None = None
    """Why it ended before its last step."""


@dataclass(frozen=True)
class EarlierTrial:
    """A trial of an earlier sweep."""

    sweep: str
    """The sweep's place."""
    id: str
    values: Mapping[str, Any]
    """By dotted path."""

    @property
    def attributes(self) -> dict[str, str]:
        """User attributes of its trial here."""
        return {SWEEP: self.sweep, TRIAL: self.id}


def proposal_of(trial: FrozenTrial, space: Space) -> Proposal:
    """The proposal that a trial of the study is. Raises KeyError where it isn't one of a search over this space."""
    attributes = trial.user_attrs
    taken_from = f"{attributes[SWEEP]}/{attributes[TRIAL]}" if SWEEP in attributes else None
    return Proposal(trial.number, values_of(trial, space), attributes[ORIGIN], trial.state, attributes.get(REPEATS), taken_from)


def running_trial(values: Mapping[str, Any], space: Space, origin: str, earlier: EarlierTrial | None = None) -> FrozenTrial:
    """A trial that is to be trained. `earlier`: the trial of an earlier sweep that has these values."""
    attributes = earlier.attributes if earlier is not None else {}
    return create_trial(state=TrialState.RUNNING, user_attrs={ORIGIN: origin, **attributes}, **_parameters(values, space))


def entered_trial(earlier: EarlierTrial, result: Result, space: Space, objectives: Iterable[str]) -> FrozenTrial:
    """A trial of an earlier sweep that enters with its result."""
    ended = ended_trial(result, objectives)
    # Optuna's `tell` makes the last intermediate value that of a stopped one.
    last = [ended.intermediate_values[ended.last_step]] if ended.last_step is not None else None
    return create_trial(
        state=ended.state,
        values=last if ended.state is TrialState.PRUNED else ended.values,
        intermediate_values=ended.intermediate_values,
        constraints=ended.constraints,
        user_attrs={ORIGIN: ENTERED, **earlier.attributes, **ended.user_attrs},
        **_parameters(earlier.values, space),
    )


def repeat_of(original: FrozenTrial) -> FrozenTrial:
    """A trial of the sampler with the values and, where known, the result of another one."""
    told = {name: value for name, value in original.user_attrs.items() if name in TOLD}
    return create_trial(
        state=original.state,
        values=original.values,
        params=original.params,
        distributions=original.distributions,
        user_attrs={**told, ORIGIN: SAMPLER, REPEATS: original.number},
        intermediate_values=original.intermediate_values,
        constraints=original.constraints,
    )


def ended_trial(result: Result, objectives: Iterable[str]) -> FrozenTrial:
    """A result as Optuna stores it, without parameters: with several objectives also without intermediate values, which it doesn't take."""
    names = list(objectives)
    best = [result.values[name] for name in names] if result.values is not None and result.state is not TrialState.FAIL else None
    course = {row.step: row.metrics.get(names[0], math.nan) for row in result.rows} if len(names) == 1 else {}
    attributes = {
        **{ERROR: result.error, FAILED_BY: result.failed_by, STOPPED: result.stopped},
        BEST: best if result.state is TrialState.PRUNED else None,
    }
    return create_trial(
        state=result.state,
        values=best if result.state is TrialState.COMPLETE else None,
        intermediate_values={step: value for step, value in course.items() if math.isfinite(value)},
        constraints=dict(result.excess or {}),
        user_attrs={name: value for name, value in attributes.items() if value is not None},
    )


def _parameters(values: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Parameters and their distributions, as Optuna has them."""
    having = {path: space.at(path, values) for path in values}
    return {
        "params": {having[path].name: to_optuna(having[path].range, value) for path, value in values.items()},
        "distributions": {one.name: distribution(one.range) for one in having.values()},
    }
