"""Copies a remote sweep's TensorBoard events to the local disk, and refreshes the copies."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from fewshot_ray.patience import is_missing, place_errors, reason
from fewshot_ray.report.tensorboard import EVENTS
from fewshot_ray.storage import Folder, open_place

REFRESH_SEC = 5.0
"""Time between two listings of the storage."""
PART_BYTES = 2**22
"""Bytes per request."""
PARTS = 8
"""Requests at the same time."""
JOIN_SEC = 3.0


class Mirror:
    """Context with copies of a sweep's event files, `trials/<id>/<file>` in a temporary folder, which a thread refreshes.

    Files that grew are appended to, since TensorBoard keeps them open. `say` gets a line when the storage fails, and when it works again.
    """

    def __init__(self, sweep: Folder, say: Callable[[str], None] = lambda line: None) -> None:
        self.sweep = sweep
        self.say = say
        self.folder = Path(tempfile.mkdtemp(prefix="fewshot-ray-board-"))
        self.trials = self.folder / "trials"
        self.trials.mkdir()
        self._looked = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        try:
            self._thread.join(JOIN_SEC)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for the first complete copy; returns whether there is one."""
        return self._looked.wait(seconds)

    def refresh(self) -> None:
        """Copy new bytes and remove deleted files. Raises one of `place_errors`; what was copied before stays."""
        # Some stores answer a request for a part with the whole object's checksum.
        filesystem, root = open_place(f"{self.sweep.url}/trials")
        there = _event_files(filesystem, root)
        for local in [*self.trials.glob("*/*")]:
            if local not in {self.trials / name for name in there}:
                local.unlink()
        problems: list[Exception] = []
        for parts in _batches(self._missing(there)):
            paths, starts, ends = ([getattr(part, name) for part in parts] for name in ("path", "start", "end"))
            contents = filesystem.cat_ranges(paths, starts, ends, on_error="return")
            failed = [content for content in contents if isinstance(content, Exception)]
            problems += failed
            for part, content in zip(parts, contents, strict=True):
                if not isinstance(content, Exception):
                    self._append(part, content)
            # One unreadable file doesn't stop the others; where a whole batch fails, the storage is unreachable.
            if self._stop.is_set() or len(failed) == len(parts):
                break
        if problems:
            raise problems[0]

    def _missing(self, there: dict[str, tuple[str, int]]) -> Iterator[_Part]:
        """The parts that the local copies lack; a trial's files in their order, since TensorBoard reads them one after the other."""
        for name in sorted(there):
            path, size = there[name]
            local = self.trials / name
            start = local.stat().st_size if local.exists() else 0
            for begin in range(start if start <= size else 0, size, PART_BYTES):
                yield _Part(local, path, begin, min(begin + PART_BYTES, size))

    def _append(self, part: _Part, content: bytes) -> None:
        if self._stop.is_set():
            return
        part.local.parent.mkdir(exist_ok=True)
        # Written anew where there is no local file, or the remote one was replaced by a shorter one.
        with open(part.local, "ab" if part.start else "wb") as file:
            if file.tell() == part.start:
                file.write(content)

    def _run(self) -> None:
        failing = False
        while not self._stop.is_set():
            try:
                self.refresh()
            except place_errors() as error:
                if not failing:
                    self.say(f"{self.sweep}: its events can't be read ({reason(error)}); what was copied is shown, and it is tried again")
                failing = True
            else:
                if failing:
                    self.say(f"{self.sweep}: its events are read again")
                failing = False
                self._looked.set()
            self._stop.wait(REFRESH_SEC)


class _Part(NamedTuple):
    """Bytes `start` to `end` of the remote file at `path`, which the file `local` lacks."""

    local: Path
    path: str
    start: int
    end: int


def _event_files(filesystem: Any, root: str) -> dict[str, tuple[str, int]]:
    """`<id>/<event file>` -> remote path and size, from one listing below `root`."""
    try:
        found = filesystem.find(root, detail=True)
    except FileNotFoundError as error:
        if not is_missing(error):
            raise
        return {}
    files = {}
    for path, info in found.items():
        trial_id, _, name = path.strip("/").removeprefix(f"{root.strip('/')}/").partition("/")
        # An object's key may be anything, even `../x`.
        if name.startswith(EVENTS) and "/" not in name and trial_id not in ("", ".", ".."):
            files[f"{trial_id}/{name}"] = (path, int(info["size"]))
    return files


def _batches(parts: Iterator[_Part]) -> Iterator[list[_Part]]:
    """The parts in batches of PARTS."""
    for _, batch in groupby(enumerate(parts), key=lambda item: item[0] // PARTS):
        yield [part for _, part in batch]
