"""The study's journal: a local file while the driver runs, uploaded whole where the sweep's folder is remote."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from fewshot_ray.storage import Folder

JOURNAL = "study.journal"


class Journal:
    """`path` is the local file that Optuna appends to: the folder's own, or a copy of a remote one, since object stores can't append."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        if folder.local is not None:
            self.path = folder.local / JOURNAL
            return
        earlier = folder.read_bytes(JOURNAL) if folder.exists(JOURNAL) else None
        scratch = tempfile.mkdtemp(prefix="fewshot-ray-journal-")
        self._remove_copy = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)  # at the latest when the process ends
        self.path = Path(scratch) / JOURNAL
        if earlier is not None:
            self.path.write_bytes(earlier)

    def close(self) -> None:
        """Remove the local copy of a remote folder's journal."""
        if self.folder.local is None:
            self._remove_copy()

    def sync(self) -> None:
        """Upload the journal, where the folder is remote."""
        if self.folder.local is None:
            self.folder.write_bytes(JOURNAL, self.path.read_bytes())
