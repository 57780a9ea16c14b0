"""`fewshot-ray check`: checks before training, and an estimate of its cost."""

from __future__ import annotations

from rich.console import Console

from fewshot_ray.cli.cost import Work, here_lines, plan_lines, work
from fewshot_ray.cluster.needs import JOIN_SEC, check_needs
from fewshot_ray.search.budget import used_before
from fewshot_ray.search.opened import Opened, planned_sweep
from fewshot_ray.search.packing import auto_lines
from fewshot_ray.search.warm_start import earlier_sweeps, warm_start
from fewshot_ray.spec.document import Document
from fewshot_ray.trial.materials import Materials
from fewshot_ray.trial.ranking import Ranking


class Say:
    """Prints lines of a topic and a text."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, topic: str, text: str, style: str = "") -> None:
        """Print a line."""
        style = style or ("yellow" if topic in ("image", "warning") else "bold")
        self.console.print(f"{topic:<8}", style=style, end="")
        self.console.print(text, soft_wrap=True)


def check_file(document: Document, address: str | None, console: Console) -> None:
    """Raise UserError at the first thing that would stop the run; print findings, warnings and the plan."""
    say = Say(console)
    opened = planned_sweep(document)
    materials, fits = check_needs(opened, say, own_ray=address is None)
    for line in auto_lines(opened.file.resources):
        say("packing", line)
    say_warm_start(opened, say)
    if fits is None:
        fits = _fits_there(opened, address)
    used = used_before(opened.folder, Ranking.of(opened.file.search))
    for topic, text in here_lines(check_plan(opened.document, materials, say), fits, used):
        say(topic, text)


def say_warm_start(opened: Opened, say: Say) -> None:
    """Print what a search that hasn't begun takes over from earlier sweeps. Raises UserError."""
    if not (opened.folder.folder / "trials").names():
        sweeps = earlier_sweeps(opened.document, opened.file, opened.folder.folder)
        for line in warm_start(opened.document, opened.file, sweeps).lines:
            say("earlier", line)


def _fits_there(opened: Opened, address: str | None) -> int:
    """Number of trials that fit at the same time on the Ray at `address`. Raises UserError where none answers, or no trial fits."""
    from fewshot_ray.cluster.session import check_resources, ray_session

    with ray_session(address):
        return check_resources(opened.file.resources, begun=bool(opened.folder.trials()), join_sec=JOIN_SEC)


def check_plan(document: Document, materials: Materials, say: Say) -> Work:
    """Train a few steps and print the plan. Raises UserError where those steps fail."""
    measured = work(document, materials)
    for topic, text in plan_lines(document, materials, measured):
        say(topic, text)
    return measured
