"""What the progress shows in a terminal and in a file."""

from __future__ import annotations

import io
import re
import time

import pytest
from rich.console import Console

from fewshot_ray.report.progress import Progress
from fewshot_ray.report.terminal import doing, plain_console
from fewshot_ray.trial.activity import Activity
from fewshot_ray.trial.ranking import Ranking


def drive(console: Console) -> None:
    with Progress(160, ranking=Ranking({"holdout_loss": "min"}), console=console) as progress:
        progress.add_trials(3)
        progress.started("t0000", "ant [red]preset")
        progress.started("t0001", "plain")
        progress.evaluated("t0000", 40, {"holdout_loss": 0.2, "kid": 1.0}, 0.31)
        progress.evaluated("t0000", 80, {"holdout_loss": 0.25}, 0.30)
        progress.finished("t0000", "COMPLETE", {"holdout_loss": 0.2})
        progress.evaluated("t0001", 40, {"holdout_loss": float("nan")}, 0.5)
        progress.finished("t0001", "PRUNED", None, "below the best third at step 40")
        progress.add_trials(1)
        progress.started("t0002", "ant", steps=80, step=40)
        progress.finished("t0002", "FAIL", reason="loss is nan")


def test_a_file_gets_one_plain_line_an_event() -> None:
    file = io.StringIO()
    drive(Console(file=file, width=60))
    lines = file.getvalue().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d t000\d ", line) for line in lines)
    texts = [re.sub(r", about [\d:]+ left", "", line[9:]) for line in lines]
    assert texts == [
        "t0000 started: ant [red]preset",
        "t0001 started: plain",
        "t0000 step 40/160: holdout_loss 0.2 (best 0.2 at 40), train loss 0.31",
        "t0000 step 80/160: holdout_loss 0.25 (best 0.2 at 40), train loss 0.3",
        "t0000 complete: holdout_loss 0.2  [1/3 trials]",
        "t0001 step 40/160: holdout_loss nan, train loss 0.5",
        "t0001 pruned at step 40 (below the best third at step 40)  [2/3 trials]",
        "t0002 started: ant, from step 40",
        "t0002 fail at step 40 (loss is nan)  [3/4 trials]",
    ]
    assert "\x1b" not in file.getvalue()


def test_a_terminal_gets_live_lines_and_keeps_the_finished() -> None:
    """Oracle: the text that reached a console that says it is a terminal."""
    file = io.StringIO()
    drive(Console(file=file, width=120, force_terminal=True))
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "t0000 complete: holdout_loss 0.2" in text
    assert "t0002 fail at step 40 (loss is nan)" in text
    assert "3/4 trials" in text
    assert "best 0.2 by t0000" in text


def test_the_best_is_of_those_that_keep_the_bounds() -> None:
    """Oracle: by hand; what is past a bound is shown, and is the best of nothing, however low its loss."""
    file = io.StringIO()
    ranking = Ranking({"holdout_loss": "min"}, {"memorisation": ("<=", 0.2)})
    with Progress(4, ranking=ranking, console=Console(file=file, width=160)) as progress:
        progress.started("t0000", "ant")
        progress.evaluated("t0000", 2, {"holdout_loss": 0.5, "memorisation": 0.1}, 0.3)
        progress.evaluated("t0000", 4, {"holdout_loss": 0.1, "memorisation": 0.9}, 0.3)
    assert "holdout_loss 0.1 (best 0.5 at 2)" in file.getvalue()


def test_time_left_counts_this_runs_pace_only() -> None:
    """Oracle: by hand. After a resume with 8 of 10 done, one more takes 100 s: 100 s are left."""
    file = io.StringIO()
    progress = Progress(160, console=Console(file=file))
    progress.add_trials(10, done=8)
    with progress:
        progress.started("t0008", "ant")
        progress._began -= 100
        progress.finished("t0008", "COMPLETE", {"holdout_loss": 0.1})
    assert "[9/10 trials, about 1:40 left]" in file.getvalue()


def test_what_is_under_way_is_said_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand. A file gets a line a minute, however many trials there are; what was heard in between isn't lost."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    file = io.StringIO()
    with Progress(2000, console=Console(file=file)) as progress:
        for number in range(10):
            progress.started(f"t{number:04d}", "ant", step=40)
        file.truncate(0)
        progress.at({"t0000": Activity("training", 120, 2.3456), "t0001": Activity("measuring", 160), "t0099": Activity("training", 1)})
        assert not file.getvalue()
        clock[0] = 61.0
        progress.at({"t0002": Activity("loading model and images")})
        clock[0] = 62.0
        progress.at({"t0000": Activity("training", 130, 2.4)})
    [line] = file.getvalue().strip("\0").splitlines()
    running = ["t0000 120/2000 2.35 steps/s", "t0001 160/2000 measuring", "t0002 40/2000 loading model and images"]
    assert line[9:] == ", ".join([*running, *(f"t{number:04d} 40/2000 starting" for number in range(3, 8)), "and 2 more"])


def test_a_terminal_shows_steps_and_pace() -> None:
    """Oracle: the text that reached a console that says it is a terminal; a lost worker's pace isn't shown on."""
    file = io.StringIO()
    console = Console(file=file, width=120, force_terminal=True)

    def shown() -> str:
        progress._live.refresh()  # type: ignore[union-attr]
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
        file.seek(0)
        file.truncate()
        return text

    with Progress(160, console=console) as progress:
        progress.started("t0000", "ant")
        assert "0/160 starting  ant" in shown()
        progress.at({"t0000": Activity("training", 20, 12.0)})
        assert "20/160 12 steps/s  ant" in shown()
        progress.evaluated("t0000", 40, {"kid": 0.5}, 0.3)
        progress.at({"t0000": Activity("training", 60, 11.0)})
        assert "60/160 11 steps/s  kid 0.5, train loss 0.3  ant" in shown()
        progress.lost("t0000", "gone", again=True)
        assert "40/160 starting" in shown()


def test_a_stretch_of_time_is_announced() -> None:
    """Oracle: a line with the time in a file; in a terminal the text, brackets and all, which is gone afterwards."""
    file = io.StringIO()
    with doing(plain_console(file), "checking [model]"):
        assert re.fullmatch(r"\d\d:\d\d:\d\d checking \[model\]\n", file.getvalue())
    screen = io.StringIO()
    with doing(Console(file=screen, force_terminal=True, width=80), "checking [model]"):
        pass
    assert "checking [model]" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert screen.getvalue().endswith("\x1b[2K")
