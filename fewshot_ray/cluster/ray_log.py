"""Writes Ray's own log lines to `ray.log` in the sweep's folder, rather than between the sweep's lines."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fewshot_ray.errors import UserError
from fewshot_ray.search.sweep_folder import RAY_LOG
from fewshot_ray.storage import Folder

RAY_LOGGER = logging.getLogger("ray.fewshot_ray")
"""Logger for Ray's texts on lost workers, of up to forty lines; the terminal shows one."""

logger = logging.getLogger(__name__)


@contextmanager
def ray_log(folder: Folder) -> Iterator[Callable[[], None]]:
    """Context in which Ray's loggers in this process write to the file, which is created with the first line.

    Yields a function to call after each `ray.init`, which removes handlers. For a remote folder the file is uploaded at the end, appended
    to the earlier one. A file that can't be written is no error.
    """
    with tempfile.TemporaryDirectory(prefix="fewshot-ray-log-") as scratch:
        path = (folder.local or Path(scratch)) / RAY_LOG
        handler = _Handler(path, encoding="utf-8", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        rays = logging.getLogger("ray")
        before, propagated = rays.handlers[:], rays.propagate

        def attach() -> None:
            rays.handlers[:], rays.propagate = [handler], False

        attach()
        try:
            yield attach
        finally:
            rays.handlers[:], rays.propagate = before, propagated
            handler.close()
            if folder.local is None and path.exists():
                _upload(folder, path)


class _Handler(logging.FileHandler):
    """Ignores files that can't be written (a full disk): the sweep's own writes report that."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, opening the file with the first one."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore the error."""

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):
            super().close()


def _upload(folder: Folder, path: Path) -> None:
    try:
        try:
            earlier = folder.read_bytes(RAY_LOG)
        except FileNotFoundError:
            earlier = b""
        folder.write_bytes(RAY_LOG, earlier + path.read_bytes())
    except UserError as error:
        logger.warning("%s is not in the sweep's folder: %s", RAY_LOG, error)
