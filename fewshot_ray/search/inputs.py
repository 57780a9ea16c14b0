"""Records the files that a sweep's results depend on (`inputs.json`) and finds changes since it began."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewshot_ray.data.inputs import FileState, Listed
from fewshot_ray.errors import UserError
from fewshot_ray.search.sweep_folder import NOT_A_RECORD
from fewshot_ray.storage import Folder
from fewshot_ray.trial.inputs import Input, inputs_of

INPUTS_RECORD = "inputs.json"
NAMED = 3
"""Number of files that a message names per kind of change; the others are counted."""

Files = dict[str, tuple[FileState, str | None]]
"""State and sha256 (None where the file couldn't be read) by the file's path within its place."""


@dataclass
class Compared:
    """The comparison of a sweep's inputs with those on record."""

    differences: list[str] = field(default_factory=list)
    """Differences, one text per place."""
    unknown: list[str] = field(default_factory=list)
    """What couldn't be compared, and why, one text per place."""
    today: dict[str, tuple[str, Files]] = field(default_factory=dict)
    """Current place and files by field; those on record where the place can't be read now."""


def put_inputs_on_record(folder: Folder, tree: dict[str, Any]) -> None:
    """Write `inputs.json` where no trial has begun or there is none; else raise UserError where a file has changed.

    Called by the sweep's driver before it trains. A file that was only copied or touched is recorded with its new time.
    """
    on_record = _read(folder) if _has_begun(folder) else None
    compared = _compare(on_record or {}, tree, lambda _: True)
    if on_record is not None and compared.differences:
        raise _refusal(folder, compared.differences)
    if on_record != compared.today:
        folder.write_text(INPUTS_RECORD, _text(compared.today))


def check_inputs(folder: Folder, tree: dict[str, Any], reads: Callable[[Input], bool] = lambda _: True) -> list[str]:
    """Raise UserError where a file of the inputs that `reads` selects has changed; returns warnings of what couldn't be compared."""
    if not _has_begun(folder):
        return []
    on_record = _read(folder)
    if on_record is None:
        return [f"{folder.url}: has no {INPUTS_RECORD}, so its images and models can't be compared with those of its trials"]
    compared = _compare(on_record, tree, reads)
    if compared.differences:
        raise _refusal(folder, compared.differences)
    if compared.unknown:
        return [f"not compared with what the sweep began with: {'; '.join(compared.unknown)}"]
    return []


def compared_with(earlier: Folder, tree: dict[str, Any]) -> tuple[set[str], list[str]]:
    """The fields of a tree whose files are those that an earlier sweep recorded, and what of the others differs or couldn't be compared.

    `target.test`, which no trial reads, isn't compared.
    """
    on_record = _read(earlier)
    if on_record is None:
        return set(), [f"images and models, perhaps (it has no {INPUTS_RECORD})"]
    compared = _compare(on_record, tree, lambda one: one.field != "target.test")
    differing = [*compared.differences, *(f"{text}, perhaps" for text in compared.unknown)]
    return {path for path in compared.today if path in on_record and not any(text.startswith(f"{path} ") for text in differing)}, differing


def changed_inputs(folder: Folder, tree: dict[str, Any], reads: Callable[[Input], bool]) -> list[str]:
    """As `check_inputs`, for inputs that aren't read: a difference is a warning, not an error."""
    try:
        return check_inputs(folder, tree, reads)
    except UserError as error:
        return [str(error).partition("; as it was")[0]]


def _refusal(folder: Folder, differences: Sequence[str]) -> UserError:
    return UserError(f"{folder.url}: {'; '.join(differences)}; as it was when the sweep began, or another name, would be right")


def _has_begun(folder: Folder) -> bool:
    return bool((folder / "trials").names())


def _compare(on_record: Mapping[str, tuple[str, Files]], tree: dict[str, Any], reads: Callable[[Input], bool]) -> Compared:
    compared = Compared()
    for one in inputs_of(tree):
        place, before = on_record.get(one.field, (one.place, {}))
        if not reads(one):
            continue
        try:
            listed = one.look()
        except UserError as error:
            compared.unknown.append(f"{one.field} ({_within(str(error), one)})")
            if one.field in on_record:
                compared.today[one.field] = place, before
            continue
        if listed is None:
            continue
        files = _today(listed, before)
        compared.today[one.field] = one.place, files
        if one.field in on_record:
            difference = _difference(before, files)
            if difference:
                compared.differences.append(f"{one.field} ({one.place}) isn't what the sweep began with: {difference}")
            if unsaid := [name for name in before if name in files and _same(before[name], files[name]) is None]:
                compared.unknown.append(f"{one.field} ({_few(unsaid)}: without a hash on record)")
        elif on_record:
            compared.unknown.append(f"{one.field} ({one.place}: not on record)")
    return compared


def _today(listed: Listed, before: Files) -> Files:
    """The current states and hashes; a hash on record is kept where the listing proves the file unchanged, else the file is hashed."""
    known = {
        name: digest
        for name, (state, digest) in before.items()
        if name in listed.files and listed.files[name].is_surely(state) and digest is not None
    }
    hopeless = {name for name, state in listed.files.items() if name in before and before[name][0].bytes != state.bytes}
    digests = known | listed.hashes(name for name in listed.files if name not in known and name not in hopeless)
    return {name: (state, digests.get(name)) for name, state in listed.files.items()}


def _same(before: tuple[FileState, str | None], now: tuple[FileState, str | None]) -> bool | None:
    """Whether two states are of the same content; None where that isn't known."""
    if before[0].bytes != now[0].bytes:
        return False
    if before[1] is not None and now[1] is not None:
        return before[1] == now[1]
    return True if now[0].is_surely(before[0]) else None


def _difference(before: Files, now: Files) -> str:
    kinds = {
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": [name for name in before if name in now and _same(before[name], now[name]) is False],
    }
    if any("" in names for names in kinds.values()):
        return "the file has changed" if kinds["changed"] else "a file where a folder was, or the other way round"
    return ", ".join(f"{_few(names)} {kind}" for kind, names in kinds.items() if names)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(name or "the file" for name in sorted(names)[:NAMED]) + more


def _within(message: str, one: Input) -> str:
    """The text of an error without the place, which the warning gives itself, and without its advice."""
    for beginning in (f"images {one.place}: ", f"{one.field}: "):
        message = message.removeprefix(beginning)
    return message.partition(";")[0]


def _text(inputs: Mapping[str, tuple[str, Files]]) -> str:
    tree = {
        path: {"place": place, "files": [_entry(name, *files[name]) for name in sorted(files)]} for path, (place, files) in inputs.items()
    }
    return json.dumps(tree, indent=1) + "\n"


def _entry(name: str, state: FileState, digest: str | None) -> dict[str, Any]:
    return {"name": name, "bytes": state.bytes, "modified": state.modified, "etag": state.etag, "sha256": digest}


def _read(folder: Folder) -> dict[str, tuple[str, Files]] | None:
    """The inputs on record; None where there are none. Raises UserError where the record is damaged."""
    try:
        text = folder.read_bytes(INPUTS_RECORD)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return {str(path): (str(one["place"]), dict(_files(one["files"]))) for path, one in json.loads(text).items()}
    except (*NOT_A_RECORD, AttributeError) as error:
        where = f"{folder.url}/{INPUTS_RECORD}"
        raise UserError(f"{where}: no record of a sweep's inputs; remove it to go on without (nothing is then compared)") from error


def _files(entries: Any) -> Iterator[tuple[str, tuple[FileState, str | None]]]:
    for one in entries:
        state = FileState(int(one["bytes"]), _text_or_none(one["modified"]), _text_or_none(one["etag"]))
        yield str(one["name"]), (state, _text_or_none(one["sha256"]))


def _text_or_none(value: Any) -> str | None:
    if not (value is None or isinstance(value, str)):
        raise TypeError(type(value).__name__)
    return value
