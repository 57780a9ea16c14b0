"""A sweep's progress in the terminal: live lines, or plain ones where the output is a file or a pipe."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as LiveDisplay
from rich.text import Text

from fewshot_ray.report.leaderboard import Objectives, format_value

STATE_STYLE = {"COMPLETE": "green", "PRUNED": "yellow", "FAIL": "red"}


@dataclass
class _Running:
    label: str
    step: int
    """The step of the last evaluation, or the one it was resumed from."""
    first_step: int
    steps: int
    best: float | None = None
    best_step: int | None = None
    line: TaskID | None = None


class Progress:
    """Shows trials as they start, are evaluated and end; a context manager. Call it from one thread.

    In a terminal: a line for each running trial, a bar for the sweep, and a line left behind by each finished trial.
    Elsewhere: one plain line an event. No threads but the one rich refreshes with.
    """

    def __init__(
        self, total_trials: int, steps: int, *, objectives: Objectives | None = None, done_trials: int = 0, console: Console | None = None
    ) -> None:
        """`steps` is a full-length trial's; the first of `objectives` is the metric shown; `done_trials` were finished before a resume."""
        self._total_trials, self._done_trials, self._steps = total_trials, done_trials, steps
        self._metric = next(iter(objectives), None) if objectives else None
        self._direction = objectives[self._metric] if objectives and self._metric else "min"
        self._console = console or Console()
        self._running: dict[str, _Running] = {}
        self._trials_ended_here = 0
        self._steps_skipped = 0.0  # made before a resume: no part of this run's pace
        self._began = time.monotonic()
        self._best: tuple[float, str] | None = None
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), TextColumn("{task.fields[note]}", markup=False))
        self._live = LiveDisplay(*columns, console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._bar = None if self._live is None else self._live.add_task("sweep", total=max(total_trials, 1), note="")

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

    def add_trials(self, count: int) -> None:
        """So many more trials are to come (confirmations, the refit)."""
        self._total_trials += count
        self._refresh()

    def started(self, id: str, label: str, *, steps: int | None = None, step: int = 0) -> None:
        """A trial begins, or goes on from `step`; `steps` where its length is not the sweep's."""
        old = self._running.pop(id, None)
        trial = _Running(label, step, step, steps or self._steps)
        if old is not None:  # a retry of a trial that was lost
            trial.best, trial.best_step, trial.line = old.best, old.best_step, old.line
        self._running[id] = trial
        if self._live is None:
            self._say(f"{id} started: {label}" + (f", from step {step}" if step else ""))
        elif trial.line is None:
            trial.line = self._live.add_task(id, total=trial.steps, completed=step, note=label)
        self._refresh()

    def evaluated(self, id: str, step: int, metrics: Mapping[str, float], train_loss: float) -> None:
        """A running trial was evaluated at `step`."""
        trial = self._running.setdefault(id, _Running("", 0, 0, self._steps))
        trial.step = step
        name = self._metric or next(iter(metrics), None)
        value = metrics.get(name, math.nan) if name is not None else math.nan
        if math.isfinite(value) and (trial.best is None or self._is_better(value, trial.best)):
            trial.best, trial.best_step = value, step
        reading = f"train loss {format_value(train_loss)}"
        if name in metrics:  # a refit has none
            best = "" if trial.best is None else f" (best {format_value(trial.best)} at {trial.best_step})"
            reading = f"{name} {format_value(float(value))}{best}, {reading}"
        if self._live is not None and trial.line is not None:
            self._live.update(trial.line, completed=step, note=f"{step}/{trial.steps}  {reading}  {trial.label}")
        else:
            self._say(f"{id} step {step}/{trial.steps}: {reading}")
        self._refresh()

    def lost(self, id: str, reason: str, *, again: bool) -> None:
        """A running trial lost its worker; it goes on from its last checkpoint where it is started `again`."""
        self._say(f"{id} lost its worker ({reason})" + ("; it is started again" if again else ""), style="yellow")

    def say(self, text: str) -> None:
        """A line about the sweep itself."""
        self._say(text)

    def finished(self, id: str, state: str, value: float | None = None, reason: str | None = None) -> None:
        """A trial ended as COMPLETE, PRUNED or FAIL; `value` is its best of the metric shown, `reason` why it ended early."""
        trial = self._running.pop(id, None)
        self._done_trials += 1
        self._trials_ended_here += 1
        self._steps_skipped += trial.first_step if trial else 0
        if self._live is not None and trial is not None and trial.line is not None:
            self._live.remove_task(trial.line)
        if (
            state == "COMPLETE"
            and value is not None
            and math.isfinite(value)
            and (self._best is None or self._is_better(value, self._best[0]))
        ):
            self._best = (value, id)
        text = f"{id} {state.lower()}"
        if trial is not None and state != "COMPLETE":
            text += f" at step {trial.step}"
        if value is not None:
            text += f": {self._metric or 'value'} {format_value(float(value))}"
        if reason:
            text += f" ({reason})"
        self._say(text, style=STATE_STYLE.get(state, ""), ended=True)
        self._refresh()

    def _is_better(self, value: float, than: float) -> bool:
        return value < than if self._direction == "min" else value > than

    def _say(self, text: str, style: str = "", ended: bool = False) -> None:
        if self._live is not None:
            self._console.print(Text(text, style=style))
            return
        count = f"  [{self._done_trials}/{self._total_trials} trials{self._eta()}]" if ended else ""
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}{count}"), soft_wrap=True)

    def _refresh(self) -> None:
        if self._live is None or self._bar is None:
            return
        under_way = sum(min(trial.step / trial.steps, 1.0) for trial in self._running.values())
        best = "" if self._best is None else f", best {format_value(self._best[0])} by {self._best[1]}"
        note = f"{self._done_trials}/{self._total_trials} trials{self._eta()}{best}"
        self._live.update(self._bar, total=max(self._total_trials, 1), completed=self._done_trials + under_way, note=note)

    def _eta(self) -> str:
        """`, 12:30 left`, from this run's own pace in trials' worth of work; empty until there is one."""
        under_way = sum(min(trial.step / trial.steps, 1.0) for trial in self._running.values())
        skipped = (self._steps_skipped + sum(trial.first_step for trial in self._running.values())) / self._steps
        made = self._trials_ended_here + under_way - skipped
        left = self._total_trials - self._done_trials - under_way
        if made <= 0 or left <= 0:
            return ""
        seconds = round((time.monotonic() - self._began) * left / made)
        hours, minutes = divmod(seconds // 60, 60)
        clock = f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
        return f", about {clock} left"
