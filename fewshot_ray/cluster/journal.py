"""The study's journal: on this machine's disk while the driver runs, kept whole in the sweep's folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fewshot_ray.storage import Folder

JOURNAL = "study.journal"


class Journal:
    """`path` is the file Optuna appends to. In a remote folder a copy is kept: an object store can't append."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        if folder.local is not None:
            self.path = folder.local / JOURNAL
            return
        self.path = Path(tempfile.mkdtemp(prefix="fewshot-ray-journal-")) / JOURNAL
        if folder.exists(JOURNAL):
            self.path.write_bytes(folder.read_bytes(JOURNAL))

    def close(self) -> None:
        """Remove this machine's copy of a remote folder's journal."""
        if self.folder.local is None:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def sync(self) -> None:
        """Upload the journal whole, where the folder is remote."""
        if self.folder.local is None:
            self.folder.write_bytes(JOURNAL, self.path.read_bytes())
