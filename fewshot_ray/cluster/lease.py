"""One driver a sweep: a lease in the sweep's folder, renewed while the driver lives, taken over when it is stale."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder

logger = logging.getLogger(__name__)

LEASE = "lease.json"
RENEW_SEC = 10.0
STALE_SEC = 60.0
"""By this machine's clock; as the holder's may be wrong, it is then watched for `WATCH_SEC`, in which a living driver renews it."""
WATCH_SEC = 2.5 * RENEW_SEC
MOST_SKEW_SEC = 3600.0
"""No clock is taken to be more wrong than this."""
SETTLE_SEC = 1.0
"""An object store can't compare and swap: two drivers that write at once both look again after this long, and the last one has it."""


@dataclass(frozen=True)
class Holder:
    """A driver, and when it last said that it lives."""

    token: str
    host: str
    pid: int
    started: str
    """Of the process, so that another one with its number isn't taken for it; "" where the system doesn't say."""
    renewed_sec: float
    """Seconds since 1970."""

    @property
    def ended(self) -> bool:
        """Whether it ran on this machine and doesn't any more."""
        return self.host == socket.gethostname() and _started(self.pid) != self.started

    @property
    def age_sec(self) -> float:
        """Since it was last renewed, between two machines' clocks; below 0 where its own goes ahead."""
        return time.time() - self.renewed_sec


class Lease:
    """Within the block this process is the sweep's driver. Raises UserError where another one is.

    `lost` says that another driver has taken over meanwhile (this one was silent for too long): it must write nothing more.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.token = uuid4().hex
        self.lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        holder = self.holder()
        if holder is not None and not self._is_gone(holder):
            ago = max(0.0, holder.age_sec)
            raise UserError(
                f"{self.folder.url}: process {holder.pid} on {holder.host} runs this sweep (last heard of {ago:.0f} s ago); wait for it or "
                f"stop it there; if it is gone, the sweep is free {max(1.0, STALE_SEC - ago):.0f} s from now"
            )
        self._write()
        if self.folder.local is None or holder is not None:
            time.sleep(SETTLE_SEC)
        if not self._is_own():
            raise UserError(f"{self.folder.url}: another process began to run this sweep at the same moment; one of them is right")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if not self.lost and self._is_own():
            self.folder.remove(LEASE)

    def check(self) -> None:
        """Raise UserError where the lease is lost."""
        if self.lost:
            raise UserError(f"{self.folder.url}: another process has taken this sweep over, since this one was silent; it goes on there")

    def holder(self) -> Holder | None:
        """Who has the lease; None for nobody, or where what is there can't be read."""
        try:
            return Holder(**json.loads(self.folder.read_text(LEASE)))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _is_gone(self, holder: Holder) -> bool:
        if holder.ended or holder.age_sec > MOST_SKEW_SEC:
            return True
        if holder.host == socket.gethostname() or 0 <= holder.age_sec <= STALE_SEC:
            return False
        logger.warning("%s: waiting %.0f s to see whether %s still runs this sweep", self.folder.url, WATCH_SEC, holder.host)
        ends_sec = time.monotonic() + WATCH_SEC
        while time.monotonic() < ends_sec:
            time.sleep(min(1.0, WATCH_SEC / 10))
            if self.holder() != holder:
                return False
        return True

    def _is_own(self) -> bool:
        holder = self.holder()
        return holder is not None and holder.token == self.token

    def _write(self) -> None:
        own = Holder(self.token, socket.gethostname(), os.getpid(), _started(os.getpid()), time.time())
        self.folder.write_text(LEASE, json.dumps(asdict(own)))

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_SEC):
            try:
                holder = self.holder()
                if holder is not None and holder.token != self.token:
                    self.lost = True
                    return
                self._write()
            except UserError as error:  # the storage is away; the lease may grow stale, and the next look tells
                logger.warning("the lease couldn't be renewed: %s", error)


def _started(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; "" where there is none, or the system doesn't say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "" if not _alive(pid) else "alive"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
