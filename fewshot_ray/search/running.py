"""A job that is running, and what its end means."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fewshot_ray.search.faults import Fault
from fewshot_ray.search.job import Job
from fewshot_ray.search.packing import Part
from fewshot_ray.search.stopping import Stop
from fewshot_ray.search.sweep_folder import FailedBy

NOTHING = Part(cpus=0, gpus=0)
MOST_MACHINES_LOST = 100
"""Lost machines after which a trial is given up, since it may be the cause."""


@dataclass
class Running:
    """A job that is running on a worker."""

    job: Job
    steps: set[int] = field(default_factory=set)
    """Steps whose evaluation is on record."""
    stop: Stop | None = None
    """Why it was stopped before its last step."""
    problem: str | None = None
    """Why it failed, where no retry helps."""
    by_values: bool = False
    """Whether it failed by its values: no other machine would help."""
    failures: list[str] = field(default_factory=list)
    """Why its worker crashed, each time."""
    fault: Fault = Fault.OWN
    """The kind of the last fault."""
    was_left: bool = False
    """Whether it was left open by an earlier run, and is run again by `resume`."""
    machines_lost: int = 0
    """Times that its machine was lost or about to end."""
    just_lost: bool = False
    """Whether its worker was lost and has had no evaluation since."""
    part: Part = NOTHING
    """What its worker has reserved."""
    alone: bool = False
    """Whether it is to have a whole GPU, since a part was too small."""
    again: bool = False
    """Whether it ended to be started again with another part."""

    @property
    def stopped(self) -> bool:
        """Whether it was stopped before its last step."""
        return self.stop is not None

    @property
    def losses(self) -> dict[str, Any]:
        """What is kept when the job starts again: the counts, and whether it is to have a whole GPU."""
        return {"failures": self.failures, "machines_lost": self.machines_lost, "alone": self.alone}

    def lose(self, reason: str, fault: Fault) -> None:
        """Its worker was lost. The loss of a machine is no failure of its own, and a full disk ends the sweep in any case."""
        self.just_lost, self.fault = True, fault
        if fault is Fault.MACHINE_GONE:
            self.machines_lost += 1
        elif fault is not Fault.FULL:
            self.failures.append(reason)

    def may_go_on(self, retries: int) -> bool:
        """Whether it is restarted after its worker was lost."""
        return not (self.stopped or self.problem or self.again or self.is_given_up(retries))

    def is_dropped(self, retries: int, *, at_last_step: bool) -> bool:
        """Whether it ended for no reason that is known: Tune drops a trial whose worker was lost before it started."""
        return not (at_last_step or self.stopped or self.again or self.just_lost or self.is_given_up(retries))

    def is_given_up(self, retries: int) -> bool:
        """Whether it was lost too often to be restarted."""
        return len(self.failures) > retries or self.machines_lost > MOST_MACHINES_LOST


class Outcome(Enum):
    """What becomes of a job whose worker has ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAIL = "fail"
    AGAIN = "again"
    """It is started again."""
    INTERRUPTED = "interrupted"
    """The sweep is ending; `resume` goes on with it."""
    OPEN = "open"
    """Its machine lacks what it needs; `resume` runs it again."""


@dataclass(frozen=True)
class Ended:
    """The end of a running job."""

    outcome: Outcome
    reason: str | None = None
    """Why it failed or stays open."""
    failed_by: FailedBy | None = None


def ended(running: Running, *, at_last_step: bool, closing: bool, retries: int) -> Ended:
    """What the end of a job means. Has no effect.

    `at_last_step`: whether its last evaluation is on record; `closing`: whether the sweep is ending.
    """
    if running.problem:
        return Ended(Outcome.FAIL, running.problem, "values" if running.by_values else None)
    if running.stop is not None and not running.stop.complete:
        return Ended(Outcome.PRUNED)
    if running.stop is not None or at_last_step:
        return Ended(Outcome.COMPLETE)
    if running.again:
        return Ended(Outcome.INTERRUPTED if closing else Outcome.AGAIN)
    if not running.is_given_up(retries):
        return Ended(Outcome.INTERRUPTED if closing else Outcome.AGAIN)
    if running.fault is Fault.UNREACHABLE or (running.fault is Fault.OUT_OF_MEMORY and not running.was_left):
        return Ended(Outcome.OPEN, running.failures[-1])
    return Ended(Outcome.FAIL, _why_given_up(running), "worker")


def _why_given_up(running: Running) -> str:
    if not running.failures:
        return f"it lost {running.machines_lost} machines"
    problem = f"its worker failed (attempt {len(running.failures)}, the last): {running.failures[-1]}"
    # Running out of memory again after `resume` is the trial's own fault.
    if running.fault is Fault.OUT_OF_MEMORY:
        problem += f"; as before it was resumed: with more memory, `resume` runs it again once trials/{running.job.id} is removed"
    return problem
