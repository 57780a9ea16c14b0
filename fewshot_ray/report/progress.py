"""Shows a sweep's progress: live in a terminal, as plain lines in a file or pipe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as LiveDisplay
from rich.text import Text

from fewshot_ray.report.tables import format_value
from fewshot_ray.report.terminal import plain_console
from fewshot_ray.trial.activity import Activity
from fewshot_ray.trial.ranking import Ranking

Of = TypeVar("Of", int, str)
Best: TypeAlias = tuple[Mapping[str, float], Of]
"""The metrics of an evaluation, and its trial or step."""
QUIET_SEC = 60.0
"""Without a terminal: time after the last line at which a line with the current activities is printed."""
MOST_SHOWN = 8
"""Largest number of trials in that line."""
STARTING = Activity("starting")
STATE_STYLE = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


@dataclass
class _Running:
    label: str
    step: int
    """The step of the last evaluation, or the one it was resumed from."""
    first_step: int
    steps: int
    activity: Activity = STARTING
    """The latest activity since the last evaluation."""
    reading: str = ""
    """The text of the last evaluation."""
    best: Best[int] | None = None
    """Metrics and step of the best evaluation that keeps the constraints."""
    line: TaskID | None = None

    @property
    def made_steps(self) -> int:
        """Finished steps, by the latest evaluation or report."""
        return max(self.step, self.activity.step or 0)

    @property
    def share(self) -> float:
        """Finished share of its training, in [0, 1]."""
        return min(self.made_steps / self.steps, 1.0)

    def at(self) -> str:
        """Its step and activity, as text."""
        pace = self.activity.steps_per_sec
        doing = self.activity.doing if pace is None else f"{pace:.3g} steps/s"
        return f"{self.made_steps}/{self.steps} {doing}"


class Progress:
    """A context manager that shows trials as they start, are evaluated and end. Use it from one thread.

    In a terminal: a line per running trial, a bar for the sweep, and a line for each finished trial. Elsewhere: one plain line per event.
    It has no thread but rich's refresh.
    """

    def __init__(self, steps: int, *, ranking: Ranking | None = None, console: Console | None = None) -> None:
        """`steps` is a full-length trial's; the metric shown is the ranking's first."""
        self._total_trials, self._done_trials, self._steps = 0, 0, steps
        self._ranking = ranking
        self._metric = next(iter(ranking.objectives)) if ranking else None
        self._console = console or plain_console()
        self._running: dict[str, _Running] = {}
        self._trials_ended_here = 0
        self._steps_skipped = 0.0  # steps before a resume don't count for this run's pace
        self._began = self._said_sec = time.monotonic()
        self._best: Best[str] | None = None
        self._budget = ""
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TextColumn("{task.fields[note]}", markup=False))
        self._live = LiveDisplay(*columns, console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._bar = None if self._live is None else self._live.add_task("sweep", total=1, note="")

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._live is not None:
            self._live.start()
        self._refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            for trial in self._running.values():
                if trial.line is not None:
                    self._live.remove_task(trial.line)
            self._live.stop()

    def add_trials(self, count: int, *, done: int = 0) -> None:
        """Add trials to the total (the search's; confirmations, the refit); `done` of them ended before a resume."""
        self._total_trials += count
        self._done_trials += done
        self._refresh()

    def started(self, id: str, label: str, *, steps: int | None = None, step: int = 0) -> None:
        """A trial starts, or continues from `step`; `steps`: its length where that differs from the sweep's."""
        old = self._running.pop(id, None)
        trial = _Running(label, step, step, steps or self._steps)
        if old is not None:  # a retry of a trial that was lost
            trial.best, trial.line = old.best, old.line
        self._running[id] = trial
        if self._live is None:
            self._say(f"{id} started: {label}" + (f", from step {step}" if step else ""))
        elif trial.line is None:
            trial.line = self._live.add_task(id, total=trial.steps, completed=step, note="")
        self._show(trial)
        self._refresh()

    def at(self, activities: Mapping[str, Activity]) -> None:
        """Show the activities of running trials between two evaluations."""
        for id, activity in activities.items():
            if (trial := self._running.get(id)) is not None:
                trial.activity = activity
                self._show(trial)
        if self._live is None and self._running and time.monotonic() - self._said_sec >= QUIET_SEC:
            shown = [f"{id} {trial.at()}" for id, trial in self._running.items()]
            more = [f"and {len(shown) - MOST_SHOWN} more"] if len(shown) > MOST_SHOWN else []
            self._say(", ".join(shown[:MOST_SHOWN] + more))
        self._refresh()

    def _show(self, trial: _Running) -> None:
        if self._live is not None and trial.line is not None:
            note = "  ".join(part for part in (trial.at(), trial.reading, trial.label) if part)
            self._live.update(trial.line, completed=trial.made_steps, note=note)

    def evaluated(self, id: str, step: int, metrics: Mapping[str, float], train_loss: float) -> None:
        """A running trial was evaluated at `step`."""
        trial = self._running.setdefault(id, _Running("", 0, 0, self._steps))
        trial.step, trial.activity = step, Activity("training")
        name = self._metric or next(iter(metrics), None)
        value = metrics.get(name, math.nan) if name is not None else math.nan
        trial.best = self._better(metrics, step, trial.best)
        reading = f"train loss {format_value(train_loss)}"
        if name in metrics:  # a refit has none
            best = "" if trial.best is None else f" (best {self._shown(trial.best[0])} at {trial.best[1]})"
            reading = f"{name} {format_value(float(value))}{best}, {reading}"
        trial.reading = reading
        if self._live is not None and trial.line is not None:
            self._show(trial)
        else:
            self._say(f"{id} step {step}/{trial.steps}: {reading}")
        self._refresh()

    def lost(self, id: str, reason: str, *, again: bool) -> None:
        """A running trial lost its worker; with `again` it is restarted from its last checkpoint."""
        if (trial := self._running.get(id)) is not None:
            trial.activity = STARTING
            self._show(trial)
        self._say(f"{id} lost its worker ({reason})" + ("; it is started again" if again else ""), style="yellow")

    def left(self, id: str, reason: str) -> None:
        """A trial can't continue for now, by no fault of its own; it doesn't count as done."""
        trial = self._running.pop(id, None)
        if self._live is not None and trial is not None and trial.line is not None:
            self._live.remove_task(trial.line)
        self._say(f"{id} stays open ({reason}); `fewshot-ray resume` runs it again", style="yellow")
        self._refresh()

    def say(self, text: str) -> None:
        """Print a line about the sweep."""
        self._say(text)

    def budget(self, left: str) -> None:
        """What is left of the search's budget; where there is one, the time left isn't estimated from the number of trials."""
        self._budget = left
        self._refresh()

    def finished(self, id: str, state: str, values: Mapping[str, float] | None = None, reason: str | None = None) -> None:
        """A trial ended as COMPLETE, PRUNED or FAIL; `values` are its best evaluation's, `reason` why it ended early."""
        trial = self._running.pop(id, None)
        self._done_trials += 1
        self._trials_ended_here += 1
        self._steps_skipped += trial.first_step if trial else 0
        if self._live is not None and trial is not None and trial.line is not None:
            self._live.remove_task(trial.line)
        value = (values or {}).get(self._metric or "")
        if state == "COMPLETE":
            self._best = self._better(values or {}, id, self._best)
        text = f"{id} {state.lower()}"
        if trial is not None and state != "COMPLETE":
            text += f" at step {trial.step}"
        if value is not None:
            text += f": {self._metric or 'value'} {format_value(float(value))}"
        if reason:
            text += f" ({reason})"
        self._say(text, style=STATE_STYLE.get(state, ""), ended=True)
        self._refresh()

    def _better(self, metrics: Mapping[str, float], of: Of, than: Best[Of] | None) -> Best[Of] | None:
        """The better of two evaluations, each with its trial or step; infeasible ones never count as best."""
        if self._ranking is None or self._ranking.excess(metrics) > 0:
            return than
        return (metrics, of) if self._ranking.is_better(metrics, than and than[0]) else than

    def _shown(self, metrics: Mapping[str, float]) -> str:
        return format_value(float(metrics[self._metric or ""]))

    def _say(self, text: str, style: str = "", ended: bool = False) -> None:
        self._said_sec = time.monotonic()
        if self._live is not None:
            self._console.print(Text(text, style=style))
            return
        count = f"  [{self._done_trials}/{self._total_trials} trials{self._left()}]" if ended else ""
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}{count}"), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is None or self._bar is None:
            return
        under_way = sum(trial.share for trial in self._running.values())
        best = "" if self._best is None else f", best {self._shown(self._best[0])} by {self._best[1]}"
        note = f"{self._done_trials}/{self._total_trials} trials{self._left()}{best}"
        self._live.update(self._bar, total=max(self._total_trials, 1), completed=self._done_trials + under_way, note=note)

    def _left(self) -> str:
        """The budget left, or else the time left as `, about 12:30 left` from this run's own pace; empty until that is known."""
        if self._budget:
            return f", {self._budget}"
        under_way = sum(trial.share for trial in self._running.values())
        skipped = (self._steps_skipped + sum(trial.first_step for trial in self._running.values())) / self._steps
        made = self._trials_ended_here + under_way - skipped
        left = self._total_trials - self._done_trials - under_way
        if made <= 0 or left <= 0:
            return ""
        seconds = round((time.monotonic() - self._began) * left / made)
        hours, minutes = divmod(seconds // 60, 60)
        clock = f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
        return f", about {clock} left"
