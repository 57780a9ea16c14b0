"""Checks before a run, the same for `check` and `run`: resources, lease, inputs, model, images, storage. Starts no Ray, trains nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fewshot_ray.cluster.own_ray import check_folder
from fewshot_ray.cluster.placement import trials_on
from fewshot_ray.cluster.ray_private import machine_resources
from fewshot_ray.data.inspection import inspect_images
from fewshot_ray.errors import UserError
from fewshot_ray.search.inputs import check_inputs
from fewshot_ray.search.lease import check_free
from fewshot_ray.search.opened import Opened
from fewshot_ray.search.stopping import Stopping
from fewshot_ray.search.warm_start import earlier_sweeps
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import CrossFit, FileSpec
from fewshot_ray.trial.compose import PLAIN
from fewshot_ray.trial.materials import Materials, pick_device
from fewshot_ray.trial.preflight import check_materials, preset_materials
from fewshot_ray.trial.remarks import image_remarks
from fewshot_ray.writable import check_writable

__all__ = ["CHECKPOINT_COPIES", "JOIN_SEC", "Needs", "check_needs", "check_sources", "checkpoints", "reruns"]

JOIN_SEC = 30.0
"""Time for the nodes of a cluster that was just brought up to join it."""
CHECKPOINT_COPIES = 4
"""A trained parameter is saved with its average and Adam's two moments."""
CHECKPOINTS_OF_A_RUNNING_TRIAL = 4
"""The last two checkpoints, the best, and the one being written."""

Say = Callable[[str, str], None]
"""Called with a topic and a text: results for the topics model, images and storage, remarks for image and warning."""


class Needs(NamedTuple):
    """The results of the checks."""

    materials: Materials
    at_once: int | None
    """Trials that fit at the same time on a local Ray; None where the run joins another Ray, which is asked then."""


def check_needs(opened: Opened, say: Say, *, own_ray: bool) -> Needs:
    """Check a run, on a local Ray (`own_ray`) or one that it joins. Raises UserError at the first thing that would stop it.

    The resources of a joined Ray are checked when it is joined (`session.check_resources`).
    """
    folder = opened.folder.folder
    begun = bool((folder / "trials").names())
    at_once = None
    if own_ray:
        check_folder()
        resources = opened.file.resources
        at_once = trials_on([(machine_resources(), 1)], resources, begun=begun, where="this machine")
        pick_device(resources.gpus)
    check_free(folder)
    for line in check_inputs(folder, opened.document.tree):
        say("warning", line)
    for line in Stopping.of(opened.document, opened.file).warnings:
        say("warning", line)
    if not begun:
        earlier_sweeps(opened.document, opened.file, folder)
    materials = check_sources(opened.document, opened.file, say)
    check_writable(folder)
    if not begun:
        _check_room(opened, materials, at_once or 1, say)
    say("storage", f"{folder.url} {'exists, `run` goes on with it' if begun else 'can be written'}")
    return Needs(materials, at_once)


def check_sources(document: Document, file: FileSpec, say: Say) -> Materials:
    """Check model and images. Raises UserError at the first thing that would stop the run."""
    materials = preset_materials(document, file)
    say("model", f"{materials.spec.weights or 'from scratch'}: {materials.describe()}")
    for finding in inspect_images(file.target.images, materials.size):
        say("image", finding.message)
    warnings = check_materials(document, materials)
    held_out = ", ".join(f"{len(fold.holdout)} ({fold.name})" for fold in materials.folds)
    say("images", f"{len(materials.shots)} different ones; held out: {held_out}")
    for line in image_remarks(materials):
        say("image", line)
    for line in [*materials.warnings(), *warnings]:
        say("warning", line)
    return materials


def checkpoints(file: FileSpec, trials_at_once: int) -> int:
    """Largest number of checkpoints on storage during a sweep, without the rest of a Pareto front."""
    search = file.search
    kept = min(search.trials, search.keep_checkpoints + _arms(file)) + reruns(file) + isinstance(file.target.holdout, CrossFit)
    kept += search.confirm is not None and search.confirm.plain == "tuned"
    return trials_at_once * CHECKPOINTS_OF_A_RUNNING_TRIAL + kept


def reruns(file: FileSpec) -> int:
    """Number of reruns on fresh seeds: those that choose among several winners, and those that report the chosen one, with its controls."""
    confirm = file.search.confirm
    return confirm.top * len(confirm.choosing) + _arms(file) * len(confirm.reporting) if confirm else 0


def _arms(file: FileSpec) -> int:
    """Trials per seed that reports: the winner, and plain fine-tuning where it isn't that."""
    return 1 if PLAIN in file.method else 2


def _check_room(opened: Opened, materials: Materials, at_once: int, say: Say) -> None:
    """Raise UserError where the disk has no room for one checkpoint; warn where it may not have room for all."""
    place = opened.folder.folder.local
    if place is None:
        return
    nearest = next(path for path in (place, *place.parents) if os.path.lexists(path))
    free, one = _free_bytes(nearest), len(materials.folds) * materials.trained_numbers() * 4 * CHECKPOINT_COPIES
    if free < one:
        raise UserError(
            f"storage: {place}'s disk has {_megabytes(free)} free, and a checkpoint of a trial takes {_megabytes(one)}; "
            "freeing space there, or another place, is right"
        )
    if free < (most := one * checkpoints(opened.file, at_once)):
        say("warning", f"storage: {place}'s disk has {_megabytes(free)} free, and the sweep's checkpoints take {_megabytes(most)} at most")


def _free_bytes(place: Path) -> int:
    return shutil.disk_usage(place).free


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.3g} MB" if number < 100e6 else f"{number / 1e6:.0f} MB"
