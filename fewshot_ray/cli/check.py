"""`fewshot-ray check`: everything that can go wrong before training, and what training will cost."""

from __future__ import annotations

from rich.console import Console

from fewshot_ray.cli.cost import Work, here_lines, plan_lines, work
from fewshot_ray.cluster.opened import planned_sweep
from fewshot_ray.data.inspection import inspect_images
from fewshot_ray.report.inputs import check_inputs
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.trial.materials import Materials
from fewshot_ray.trial.preflight import check_materials, preset_materials
from fewshot_ray.trial.remarks import image_remarks
from fewshot_ray.writable import check_writable


class Say:
    """Lines of a topic and a text each."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, topic: str, text: str, style: str = "bold") -> None:
        """Print one."""
        self.console.print(f"{topic:<8}", style=style, end="")
        self.console.print(text, soft_wrap=True)


def check_file(document: Document, console: Console) -> None:
    """Raise UserError at the first thing that would stop the run; print findings, warnings and the plan."""
    say = Say(console)
    opened = planned_sweep(document)
    for line in check_inputs(opened.folder.folder, opened.document.tree):
        say("warning", line, "yellow")
    materials = check_sources(opened.document, opened.file, say)
    check_writable(opened.folder.folder)
    state = "exists, `run` goes on with it" if opened.folder.trials() else "can be written"
    say("storage", f"{opened.folder.folder.url} {state}")
    for topic, text in here_lines(check_plan(opened.document, materials, say)):
        say(topic, text)


def check_sources(document: Document, file: FileSpec, say: Say) -> Materials:
    """The model and the images. Raises UserError at the first thing that would stop the run."""
    materials = preset_materials(document, file)
    say("model", f"{file.source.model or 'from scratch'}: {materials.describe()}")
    for finding in inspect_images(file.target.images, materials.size):
        say("image", finding.message, "yellow")
    check_materials(document, materials)
    held_out = ", ".join(f"{len(fold.holdout)} ({fold.name})" for fold in materials.folds)
    say("images", f"{len(materials.shots)} different ones; held out: {held_out}")
    for line in image_remarks(materials):
        say("image", line, "yellow")
    for line in materials.warnings():
        say("warning", line, "yellow")
    return materials


def check_plan(document: Document, materials: Materials, say: Say) -> Work:
    """A few steps of training, and what the whole of it is. Raises UserError where already those fail."""
    measured = work(materials)
    for topic, text in plan_lines(document, materials, measured):
        say(topic, text)
    return measured
