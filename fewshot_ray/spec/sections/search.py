"""`search`: how the ranges are searched, who stops early, what confirms the winner, and the budget."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fewshot_ray.spec.sections.section import Place, PositiveInt, Section, Text, distinct
from fewshot_ray.spec.wording import show

_CONSTRAINT = re.compile(r"\s*(<=|>=)\s*([-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?)\s*")


def parse_constraint(text: str) -> tuple[Literal["<=", ">="], float]:
    """`"<= 0.2"` as ("<=", 0.2). Raises ValueError where it isn't a bound."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None or not math.isfinite(float(match[2])):
        raise ValueError(f"{show(text)} is not a bound; '<= 0.2' or '>= 0.1' is right")
    return ("<=" if match[1] == "<=" else ">="), float(match[2])


def _constraint(text: str) -> str:
    parse_constraint(text)
    return text


class AshaSpec(Section):
    """Asynchronous successive halving (Li et al. 2020) of the sampler's trials; preset and plain fine-tuning are never stopped."""

    metric: Text | None = None
    """Metric that trials are compared by, those that keep search.constraints first; the objectives, by fronts, when not given."""

    grace_steps: PositiveInt
    """Steps before the first decision to stop a trial; a multiple of evaluate.every."""

    reduction_factor: int = Field(default=3, ge=2)
    """At each rung the best 1 / reduction_factor of the trials continue."""


class RaceSpec(Section):
    """Ends the sampler's trials that by their forecast won't be as good as the best one; preset and plain fine-tuning are never stopped."""

    level: float = Field(default=0.05, gt=0, lt=1)
    """Level of the test by held-out image, shared among a trial's evaluations; a larger one stops more, and more often wrongly."""


class SchedulerSpec(Section):
    """Stops trials that won't become the best."""

    race: RaceSpec | None = None
    """Comparison with the best trial; none when not given."""

    asha: AshaSpec | None = None
    """Successive halving; none when not given."""


class ConfirmSpec(Section):
    """Reruns of the winners, and of plain fine-tuning at their learning rate, with new seeds."""

    top: PositiveInt = 1
    """Number of winners that are rerun; with several, half of the seeds choose the best of them, and the others report it."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(distinct)] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    """Seeds of the reruns; from fewer than three that report no conclusion is drawn."""

    plain: Literal["same_lr", "tuned"] = "same_lr"
    """Plain fine-tuning to compare with: at the winner's `train` values, or the best of its own search with as many trials."""

    @property
    def choosing(self) -> list[int]:
        """The seeds that choose among several winners: the first half, rounded down; of a single seed, that one."""
        return self.seeds[: max(1, len(self.seeds) // 2)] if self.top > 1 else []

    @property
    def reporting(self) -> list[int]:
        """The seeds that the chosen trial is reported on: the others, on which nothing was chosen."""
        return self.seeds[len(self.choosing) :]


class CostSpec(Section):
    """A limit of money, in any currency."""

    at_most: float = Field(gt=0)
    """What the search may cost."""

    per_node_hour: float = Field(gt=0)
    """Price of an hour of one machine."""


class BudgetSpec(Section):
    """Limits of the search in addition to `trials`: where the first is reached, no further trial of the search begins."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours during which trials of the search run, over all resumes; pauses aren't counted."""

    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of GPUs held by trials of the search; with `gpus_per_worker: 0.5` half of a GPU is held."""

    cost: CostSpec | None = None
    """Money for the machines while trials of the search run."""

    patience: PositiveInt | None = None
    """Number of trials that end one after the other without a better one among them."""

    @model_validator(mode="after")
    def _any(self) -> BudgetSpec:
        if all(limit is None for limit in (self.hours, self.gpu_hours, self.cost, self.patience)):
            raise ValueError("no limit is given; one or several of hours, gpu_hours, cost and patience are right")
        return self


class SearchSpec(Section):
    """How the ranges are searched."""

    trials: PositiveInt = 1
    """Number of trials, including preset and plain fine-tuning; at most the number of configurations, since none is trained twice."""

    budget: BudgetSpec | None = None
    """Further limits, of time, money or patience; none when not given."""

    earlier: Annotated[list[Place], AfterValidator(distinct)] = Field(default=[], alias="from")
    """Folders or URLs of earlier sweeps whose trials this one begins with."""

    objectives: dict[str, Literal["min", "max"]] = Field(default={"holdout_loss": "min"}, min_length=1, json_schema_extra={"by_case": True})
    """Metrics, of evaluate.metrics, to minimise or maximise."""

    constraints: dict[str, Annotated[str, AfterValidator(_constraint)]] = Field(default={}, json_schema_extra={"by_case": True})
    """Bounds on metrics that a winner must keep, e.g. {memorisation: '<= 0.2'}."""

    sampler: Literal["tpe", "gp", "nsga2", "qmc", "random"] = "tpe"
    """How values are proposed: TPE, a Gaussian process, NSGA-II, quasi-random (scrambled Sobol) or random."""

    scheduler: SchedulerSpec | None = None
    """Stops trials that won't become the best; none when not given."""

    confirm: ConfirmSpec | None = None
    """Rerun of the winners; none when not given."""

    concurrent: PositiveInt | None = None
    """Number of trials that run at the same time; as many as fit when not given."""

    keep_checkpoints: PositiveInt = 10
    """Number of best finished trials that keep a checkpoint, in addition to preset, plain fine-tuning, reruns, refit and Pareto front."""

    retries: int = Field(default=2, ge=0)
    """Times a trial is restarted after its worker crashed; the loss of a machine isn't counted."""

    include_preset: bool = True
    """Start with a trial at the methods' presets."""

    include_plain: bool = True
    """Start with a trial of plain fine-tuning, at the preset's values below `train`."""
