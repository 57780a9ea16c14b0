"""Local copies of remote files, fetched once per node for all workers and trials.

They are in `$FEWSHOT_RAY_CACHE`, or in a folder of the user's in the system's temporary one.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

from fewshot_ray.errors import UserError
from fewshot_ray.patience import patiently

CACHE_VARIABLE = "FEWSHOT_RAY_CACHE"
READS_AT_ONCE = 8


def cache_folder() -> Path:
    """The folder of the copies. Raises UserError where other users could write to it."""
    given = os.environ.get(CACHE_VARIABLE)
    folder = Path(given).expanduser() if given else Path(tempfile.gettempdir()) / f"fewshot-ray-cache-{os.getuid()}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not given:
        status = folder.lstat()
        if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode) or status.st_mode & 0o022:
            raise UserError(f"{folder}: isn't this user's alone; {CACHE_VARIABLE} naming another folder would be right")
    return folder


def local_copies(url: str, filesystem: Any, listing: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Path:
    """A folder with copies of remote files; `names` are their local names by remote path.

    The folder's name depends on the listing (sizes, dates or ETags), so changed files are fetched anew. Of several processes one fetches
    and the others wait. Raises what `patiently` does, and ValueError for a name that would be outside of the folder.
    """
    state = repr([(remote, sorted(listing[remote].items(), key=str)) for remote in sorted(names)])
    folder = cache_folder() / hashlib.sha256(f"{url}\n{state}".encode()).hexdigest()[:16]
    for name in names.values():
        if not name or os.path.isabs(name) or ".." in Path(name).parts:
            raise ValueError(f"a file is called {name!r}")
    with FileLock(f"{folder}.lock"), ThreadPoolExecutor(READS_AT_ONCE) as pool:
        missing = [(remote, folder / name) for remote, name in names.items() if not (folder / name).exists()]
        for _ in pool.map(lambda pair: _fetch(filesystem, *pair), missing):
            pass
    return folder


def local_copy(url: str, filesystem: Any, path: str) -> Path:
    """A copy of one remote file; raises what `local_copies` does."""
    info = patiently(lambda: filesystem.info(path), url)
    return local_copies(url, filesystem, {path: info}, {path: "file"}) / "file"


def _fetch(filesystem: Any, remote: str, local: Path) -> None:
    local.parent.mkdir(parents=True, exist_ok=True)
    part = local.with_name(f".{uuid4().hex[:8]}.part")
    try:
        patiently(lambda: filesystem.get_file(remote, str(part)), remote)
        part.replace(local)
    finally:
        part.unlink(missing_ok=True)
