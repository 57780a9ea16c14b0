"""What the progress shows in a terminal and in a file."""

from __future__ import annotations

import io
import re

from rich.console import Console

from fewshot_ray.report.progress import Progress
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
