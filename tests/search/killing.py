"""Ends a sweep's driver at one of its writes, as a kill does: in the midst of it or after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend

from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from tests.search.synthetic import Curve, finish, open_sweep


class Killed(BaseException):
    """The driver's process ends here."""


class Killer:
    """Counts what is written to the folder and the journal, and ends the driver at the k-th: in its midst or after it."""

    def __init__(self, at: int | None, when: str) -> None:
        self.at, self.when, self.count = at, when, 0

    def write(self, whole: Callable[[], Any], torn: Callable[[], Any]) -> None:
        self.count += 1
        if self.count != self.at:
            whole()
            return
        if self.when == "torn":
            torn()
        else:
            whole()
        raise Killed

    def install(self, patch: pytest.MonkeyPatch) -> None:
        write_bytes, append_row, append_logs = Folder.write_bytes, SweepFolder.append_row, JournalFileBackend.append_logs

        def on_write(folder: Folder, name: str, content: bytes) -> None:
            # A write appears whole or not at all; what a kill leaves is the temporary file.
            self.write(lambda: write_bytes(folder, name, content), lambda: write_bytes(folder, f".{name}.0", content[:3]))

        def on_row(folder: SweepFolder, trial_id: str, row: Any) -> None:
            place = folder.trial(trial_id).local

            def torn() -> None:
                append_row(folder, trial_id, row)
                assert place is not None
                _cut(place / "metrics.jsonl")

            if place is None:
                append_row(folder, trial_id, row)
            else:
                self.write(lambda: append_row(folder, trial_id, row), torn)

        def on_logs(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            def torn() -> None:
                append_logs(backend, logs)
                _cut(Path(backend._file_path))

            self.write(lambda: append_logs(backend, logs), torn)

        patch.setattr(Folder, "write_bytes", on_write)
        patch.setattr(SweepFolder, "append_row", on_row)
        patch.setattr(JournalFileBackend, "append_logs", on_logs)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def killed(folder: Folder, document: Document, killer: Killer, made: Curve) -> None:
    """A sweep in that folder, ended by the killer."""
    with pytest.MonkeyPatch.context() as patch:
        killer.install(patch)
        with pytest.raises(Killed):
            finish(open_sweep(folder, document), made)
