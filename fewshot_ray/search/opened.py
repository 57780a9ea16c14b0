"""Opens the folder of a new or existing sweep, with its spec. Imports no Ray, so that errors are reported quickly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fewshot_ray.errors import UserError
from fewshot_ray.search.differences import differing_paths
from fewshot_ray.search.inputs import INPUTS_RECORD, put_inputs_on_record
from fewshot_ray.search.journal import JOURNAL, recorded
from fewshot_ray.search.lease import LEASE
from fewshot_ray.search.read_journal import read_journal
from fewshot_ray.search.sweep_folder import INPUTS, RAY_LOG, SPEC, SweepFolder, check_trainable, read_spec, sweep_text, trial_id
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.extension import extended
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import absolute_places, check_document

BEFORE_TRIALS = {SPEC, RAY_LOG, "cache"}
"""Files of a run that ended before its first trial (it asked for too many GPUs, say); a corrected file replaces them."""

MAY_CHANGE = {"search.trials", "search.concurrent", "search.retries", "search.keep_checkpoints", "train.checkpoint_sec"}


@dataclass(frozen=True)
class Opened:
    """A sweep's folder with its document."""

    document: Document
    file: FileSpec
    folder: SweepFolder


def planned_sweep(document: Document) -> Opened:
    """The sweep of a run's file, without writing anything. Raises UserError where its folder has other content or another spec."""
    _, file = check_document(document)  # first with places as in the file, for messages; then they are resolved
    folder = SweepFolder(Folder(file.storage) / file.name)
    expanded, file = check_document(absolute_places(document, folder.folder.url))
    # Hidden files are left by interrupted writes.
    names = {name for name in folder.folder.names() if not name.startswith(".")} - {LEASE, INPUTS, INPUTS_RECORD}
    if SPEC not in names:
        if names:
            raise UserError(f"storage: {folder.folder.url} holds something else (no {SPEC}); another name or storage would be right")
        return Opened(expanded, file, folder)
    if names <= BEFORE_TRIALS:
        check_trainable(folder.folder)
        return Opened(expanded, file, folder)
    found = existing_sweep(folder.folder)
    differences = [path for path in differing_paths(found.document.tree, expanded.tree) if not _may_change(path)]
    if differences:
        raise UserError(
            f"{document.name}: {folder.folder.url} holds another spec "
            f"(it differs in {', '.join(differences[:3])}{f' and {len(differences) - 3} more' if len(differences) > 3 else ''}); "
            "another name would be right"
        )
    if file.search.trials < found.file.search.trials:
        raise UserError(
            f"{document.name}: search.trials: {file.search.trials} given, but {folder.folder.url} was started with "
            f"{found.file.search.trials}; as many or more are right"
        )
    return Opened(expanded, file, folder)


def _may_change(path: str) -> bool:
    """Whether a field may change in a sweep: no trial's result depends on it."""
    return path in MAY_CHANGE or re.match(r"(resources|search\.budget)(\.|$)", path) is not None


def changed(opened: Opened, *, limits: Mapping[str, float] | None = None, workers: int | None = None) -> Opened:
    """The sweep with larger limits of its search (`extension`), or with another number of workers per trial. Raises UserError."""
    tree = extended(opened.document.tree, limits or {})
    if workers is not None:
        least = min(opened.file.resources.min_workers, workers)
        tree["resources"] = {**(tree.get("resources") or {}), "workers": workers, "min_workers": least}
    document, file = check_document(replace(opened.document, tree=tree))
    return Opened(document, file, opened.folder)


def put_on_record(opened: Opened) -> Opened:
    """Write the spec and the record of inputs into the sweep's folder, unless they are there; returns the sweep. Called by its driver.

    Raises UserError where images, source model or weights have changed since the sweep began.
    """
    put_inputs_on_record(opened.folder.folder, opened.document.tree)
    text = sweep_text(opened.document)
    if not opened.folder.folder.exists(SPEC) or opened.folder.folder.read_text(SPEC) != text:
        opened.folder.folder.write_text(SPEC, text)
    return opened


def existing_sweep(folder: Folder) -> Opened:
    """An existing sweep to continue, by its folder.

    Raises UserError where there is none, an older release began it, or its journal and its trials differ.
    """
    if not folder.exists(SPEC):
        raise UserError(f"{folder.url}: no sweep there ({SPEC} is missing); the folder that `fewshot-ray run` printed would be right")
    document = read_spec(folder)
    check_trainable(folder)
    expanded, file = check_document(document)
    opened = Opened(expanded, file, SweepFolder(folder))
    _check_trials(opened)
    return opened


def _check_trials(opened: Opened) -> None:
    """Raise UserError where a recorded trial of the search isn't in the journal: a new one would get its number."""
    folder, where = opened.folder.folder, f"{opened.folder.folder.url}/{JOURNAL}"
    try:
        content, _ = recorded(folder)
    except FileNotFoundError:
        content = b""
    proposals = read_journal(content, where, opened.file.name, opened.file.search, opened.document.tree)
    known = {trial_id(proposal.number) for proposal in proposals if proposal.is_trained}
    for name in (folder / "trials").names():  # only unknown ones are read: a thousand records in a bucket would take a minute
        if name not in known and (record := opened.folder.record(name)) is not None and record.kind == "search":
            raise UserError(
                f"{where}: has {len(proposals)} trials, and {name} on record is not among them; "
                "the file as the sweep left it (a backup's, say) is right"
            )
