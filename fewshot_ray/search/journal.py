"""The study's journal: a local file while the driver runs; where the sweep's folder is remote, what is new is uploaded in parts.

A folder on disk that was copied from a store while a driver ran there has parts too: they are joined when a driver opens it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from fewshot_ray.storage import Folder

JOURNAL = "study.journal"
PARTS = "study.journal.parts"
"""Sub-folder of what follows the remote journal, while a driver runs: a part's name is the number of bytes before it."""


def recorded(folder: Folder) -> tuple[bytes, list[int]]:
    """The whole journal of a sweep's folder, and where its parts begin (0 for the file itself). Raises FileNotFoundError without one."""
    whole, starts = folder.read_bytes(JOURNAL), [0]
    if PARTS not in folder.names():
        return whole, starts
    names = set((folder / PARTS).names())
    while (name := _name(len(whole))) in names:
        starts.append(len(whole))
        whole += (folder / PARTS).read_bytes(name)
    return whole, starts


class Journal:
    """`path` is the local file that Optuna appends to: the folder's own, or a copy of a remote one, since object stores can't append."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._starts: list[int] = []
        """Where the uploaded parts begin, in ascending order; 0 is the remote file itself."""
        self._uploaded = 0
        self._has_parts = False
        """Whether there may be parts, also ones that a later one covers."""
        if folder.local is not None:
            self.path = folder.local / JOURNAL
            if PARTS in folder.names() and folder.exists(JOURNAL):
                folder.write_bytes(JOURNAL, recorded(folder)[0])
                (folder / PARTS).remove()
            return
        earlier, self._starts = recorded(folder) if folder.exists(JOURNAL) else (None, [])
        scratch = tempfile.mkdtemp(prefix="fewshot-ray-journal-")
        self._remove_copy = weakref.finalize(self, shutil.rmtree, scratch, ignore_errors=True)  # at the latest when the process ends
        self.path = Path(scratch) / JOURNAL
        if earlier is not None:
            self.path.write_bytes(earlier)
            self._uploaded = len(earlier)
            self._has_parts = PARTS in folder.names()

    def close(self) -> None:
        """Remove the local copy of a remote folder's journal."""
        if self.folder.local is None:
            self._remove_copy()

    def sync(self) -> None:
        """Upload what is new, where the folder is remote: one request.

        Earlier parts that are no larger go along and are then covered by the new one, so all uploads of a journal of n bytes have
        O(n log n) bytes, and it has O(log n) parts.
        """
        if self.folder.local is not None:
            return
        size = self.path.stat().st_size
        if size == self._uploaded:
            return
        start, end = self._uploaded, self._uploaded
        while self._starts and end - self._starts[-1] <= size - start:
            start = end = self._starts.pop()
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read()
        where, name = (self.folder, JOURNAL) if start == 0 else (self.folder / PARTS, _name(start))
        where.write_bytes(name, content)
        self._starts.append(start)
        self._uploaded = size
        self._has_parts |= start > 0

    def join(self) -> None:
        """Upload the whole as one file, where the folder is remote, and remove the parts."""
        if self.folder.local is not None:
            return
        content = self.path.read_bytes()
        if self._starts != [0] or self._uploaded != len(content):
            self.folder.write_bytes(JOURNAL, content)
            self._starts, self._uploaded = [0], len(content)
        if self._has_parts:
            (self.folder / PARTS).remove()
            self._has_parts = False


def _name(start: int) -> str:
    return f"{start:015d}"
