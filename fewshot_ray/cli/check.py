"""`fewshot-ray check`: everything that can go wrong before training, and what training will cost."""

from __future__ import annotations

from rich.console import Console

from fewshot_ray.cli.cost import plan_lines
from fewshot_ray.cluster.opened import planned_sweep
from fewshot_ray.data.inspection import inspect_images
from fewshot_ray.spec.document import Document
from fewshot_ray.trial.preflight import check_materials, preset_materials


def check_file(document: Document, console: Console) -> None:
    """Raise UserError at the first thing that would stop the run; print findings, warnings and the plan."""

    def say(topic: str, text: str, style: str = "bold") -> None:
        console.print(f"[{style}]{topic:<8}[/]", end="")
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    opened = planned_sweep(document)
    document, file = opened.document, opened.file
    materials = preset_materials(document, file)
    say("model", f"{file.source.model or 'from scratch'}: {materials.describe()}")
    for finding in inspect_images(file.target.images, materials.size):
        say("image", finding.message, "yellow")
    check_materials(document, materials)
    held_out = ", ".join(f"{len(fold.holdout)} ({fold.name})" for fold in materials.folds)
    say("images", f"{len(materials.shots)} different ones; held out: {held_out}")
    for line in materials.warnings():
        say("warning", line, "yellow")
    opened.folder.folder.check_writable()
    state = "exists, `run` goes on with it" if opened.folder.trials() else "can be written"
    say("storage", f"{opened.folder.folder.url} {state}")
    for topic, text in plan_lines(document, materials):
        say(topic, text)
