"""The budget of a search: what it has used, over all sessions of its driver, and what is left."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import NamedTuple

from fewshot_ray.errors import UserError
from fewshot_ray.search.observers import Progress
from fewshot_ray.search.running import Running
from fewshot_ray.search.sweep_folder import NOT_A_RECORD, SweepFolder, TrialRecord
from fewshot_ray.spec.sections import BudgetSpec, FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.ranking import Ranking

SESSIONS = "sessions.json"
RECORD_SEC = 60.0
"""Time between two records of the session: what a kill leaves uncounted."""


@dataclass(frozen=True)
class Session:
    """What the search used while one driver ran it, an entry of `sessions.json`."""

    started: str
    """ISO 8601 time."""
    ended: str
    """ISO 8601 time of this record."""
    hours: float = 0.0
    """Hours during which trials of the search ran."""
    gpu_hours: float = 0.0
    """Hours of GPUs that these trials held."""
    node_hours: float = 0.0
    """Hours of all machines meanwhile."""


class Used(NamedTuple):
    """What a search has used in all."""

    hours: float = 0.0
    gpu_hours: float = 0.0
    node_hours: float = 0.0
    unimproved: int = 0
    """Number of trials that have ended since the best one."""


class Limit(NamedTuple):
    """One limit of a budget."""

    spent: float
    most: float
    unit: str

    @property
    def is_reached(self) -> bool:
        """Whether nothing is left."""
        return self.spent >= self.most

    @property
    def left(self) -> str:
        """What is left, e.g. `1.8 of 3 h left`."""
        return f"{_number(max(0.0, self.most - self.spent))} of {_number(self.most)} {self.unit} left"


def limits(budget: BudgetSpec | None, used: Used) -> list[Limit]:
    """The limits that a budget sets."""
    if budget is None:
        return []
    found = []
    if budget.hours is not None:
        found.append(Limit(used.hours, budget.hours, "h"))
    if budget.gpu_hours is not None:
        found.append(Limit(used.gpu_hours, budget.gpu_hours, "GPU-hours"))
    if budget.cost is not None:
        found.append(Limit(used.node_hours * budget.cost.per_node_hour, budget.cost.at_most, "(cost)"))
    if budget.patience is not None:
        found.append(Limit(used.unimproved, budget.patience, "trials without improvement"))
    return found


def in_words(found: Iterable[Limit]) -> str:
    """What is left of each limit; empty without any."""
    return ", ".join(limit.left for limit in found)


def gpus_held(parts: Iterable[float], there: float) -> float:
    """GPUs that running trials hold, from what each reserves: no more than there are, since one may still wait for a machine."""
    return min(math.fsum(parts), there)


class Improvement:
    """Counts the trials that have ended since the last improvement, which is a complete one on a better front."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.trials = 0
        """Number of trials since then."""
        self._front: list[Mapping[str, float]] = []

    def ended(self, record: TrialRecord) -> None:
        """A trial of the search has ended."""
        self.trials += 1
        if record.state != "COMPLETE" or record.values is None:
            return
        values = [*self._front, record.values]
        front = self.ranking.front(values)
        if len(self._front) in front:
            self._front, self.trials = [values[index] for index in front], 0


def read_sessions(folder: Folder) -> list[Session]:
    """The sessions on record. Raises UserError at a damaged record."""
    try:
        entries = json.loads(folder.read_bytes(SESSIONS))
        return [_session(entry) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (*NOT_A_RECORD, AttributeError) as error:
        where = f"{folder.url}/{SESSIONS}"
        raise UserError(f"{where}: no record of a driver's sessions; without the file, what they used isn't counted") from error


def _session(entry: Mapping[str, object]) -> Session:
    session = Session(**{one.name: entry[one.name] for one in fields(Session)})  # type: ignore[arg-type]
    used = (session.hours, session.gpu_hours, session.node_hours)
    if not all(type(number) in (int, float) and math.isfinite(number) and number >= 0 for number in used):
        raise ValueError(str(used))
    return session


def used_before(folder: SweepFolder, ranking: Ranking) -> Used:
    """What a sweep on record has used of its budget."""
    improvement = Improvement(ranking)
    for record in in_order_of_end(folder.trials()):
        improvement.ended(record)
    return _in_all(read_sessions(folder.folder), improvement.trials)


def in_order_of_end(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """The search's trials that have ended, the first to end first."""
    over = [record for record in records if record.kind == "search" and record.state != "RUNNING"]
    return sorted(over, key=lambda record: (record.ended or "", record.number or 0))


def _in_all(sessions: Sequence[Session], unimproved: int) -> Used:
    return Used(
        math.fsum(session.hours for session in sessions),
        math.fsum(session.gpu_hours for session in sessions),
        math.fsum(session.node_hours for session in sessions),
        unimproved,
    )


class Budget:
    """The budget of a search that is running. `running`: the sweep's running jobs, of which those of the search are counted."""

    def __init__(self, file: FileSpec, folder: SweepFolder, running: Mapping[str, Running], progress: Progress) -> None:
        self.spec = file.search.budget
        self.workers = file.resources.workers
        self.folder = folder.folder
        self.running = running
        self.progress = progress
        self.nodes = 1
        """Number of machines."""
        self.gpus = math.inf
        """GPUs of all machines."""
        self.improvement = Improvement(Ranking.of(file.search))
        for record in in_order_of_end(folder.trials()):
            self.improvement.ended(record)
        self._before = read_sessions(self.folder)
        self._now = Session(_time(), _time())
        self._looked = self._recorded = time.monotonic()
        self._without = 0
        """Number of trials that the progress was told will not be."""
        if found := self.limits():
            progress.say(f"budget of the search: {in_words(found)}")
        self._show()

    def limits(self) -> list[Limit]:
        """The limits, with what is spent by the last look."""
        return limits(self.spec, _in_all([*self._before, self._now], self.improvement.trials))

    @property
    def is_spent(self) -> bool:
        """Whether a limit is reached: no further trial of the search begins."""
        return any(limit.is_reached for limit in self.limits())

    def look(self, *, record: bool = True) -> None:
        """Count the time since the last look for the trials that ran in it; with `record`, put it on record once a minute."""
        now = time.monotonic()
        hours, self._looked = (now - self._looked) / 3600, now
        if trials := [running for running in self.running.values() if running.job.kind == "search"]:
            gpus = gpus_held((running.part.gpus * self.workers for running in trials), self.gpus)
            self._now = Session(
                self._now.started,
                _time(),
                self._now.hours + hours,
                self._now.gpu_hours + hours * gpus,
                self._now.node_hours + hours * self.nodes,
            )
            self._show()
        if record and now - self._recorded >= RECORD_SEC:
            self.put_on_record()

    def ended(self, record: TrialRecord) -> None:
        """A trial has ended."""
        if record.kind == "search":
            self.improvement.ended(record)
            self._show()

    def put_on_record(self) -> None:
        """Write `sessions.json`, where this session has used anything."""
        self._recorded = time.monotonic()
        if self._now.hours > 0:
            rounded = replace(self._now, **{name: round(getattr(self._now, name), 6) for name in ("hours", "gpu_hours", "node_hours")})
            self.folder.write_text(SESSIONS, json.dumps([asdict(session) for session in [*self._before, rounded]], indent=1) + "\n")

    def cut(self, trials: int) -> None:
        """Tell the progress that so many of the search's trials will not be, since the budget is spent."""
        if trials != self._without:
            self.progress.add_trials(self._without - trials)
            if trials > self._without:
                reached = in_words(limit for limit in self.limits() if limit.is_reached)
                self.progress.say(f"the search ends without {trials} of its trials: {reached}")
            self._without = trials

    def close(self) -> None:
        """The driver ends."""
        with suppress(UserError):  # a full disk, say: why the driver stops is known already
            self.look(record=False)
            self.put_on_record()

    def _show(self) -> None:
        self.progress.budget(in_words(self.limits()))


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
