"""A lease in the sweep's folder allows one driver per sweep; the driver renews it, and another one takes it over once it is stale."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from fewshot_ray.conditional import OutdatedError, Seen, conditions_hold, look, remove_where, write_where
from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder

logger = logging.getLogger(__name__)

LEASE = "lease.json"
RENEW_SEC = 10.0
STALE_SEC = 60.0
"""Age, by this machine's clock, from which a lease may be stale. As the holder's clock may be wrong, it is then watched for `WATCH_SEC`."""
WATCH_SEC = 2.5 * RENEW_SEC
MOST_SKEW_SEC = 3600.0
"""Largest assumed difference between clocks; an older lease is stale without watching."""
STARTED_SOMETIME = "alive"
SETTLE_SEC = 1.0
"""Wait without conditional writes: two drivers that wrote at once both read again after it, and the last one has the lease."""


@dataclass(frozen=True)
class Holder:
    """A driver's process, and when it last renewed the lease."""

    token: str
    host: str
    pid: int
    started: str
    """Start time of the process, since numbers are reused; STARTED_SOMETIME where the system doesn't tell (macOS)."""
    renewed_sec: float
    """Seconds since 1970."""
    boot: str = ""
    """The kernel's boot id, which a machine's containers share; "" where the system doesn't tell."""
    namespace: str = ""
    """The PID namespace, since in another one the same number is another process."""

    @property
    def is_here(self) -> bool:
        """Whether its PID is valid in this process's namespace. The host name isn't enough: containers and clones may share it."""
        return (self.host, self.boot, self.namespace) == (socket.gethostname(), *_system())

    @property
    def ended(self) -> bool:
        """Whether it ran here and has ended."""
        return self.is_here and _started(self.pid) != self.started

    @property
    def is_running(self) -> bool:
        """Whether it runs here for certain: where the system doesn't tell when a process started, its number may be another one's now."""
        return self.is_here and not self.ended and self.started != STARTED_SOMETIME

    @property
    def lives(self) -> bool:
        """Whether it runs here or has renewed the lease recently; one that neither lives nor has `ended` must be watched."""
        return not self.ended and (self.is_running or 0 <= self.age_sec <= STALE_SEC)

    @property
    def age_sec(self) -> float:
        """Time since the last renewal, across two machines' clocks; negative where the holder's clock is ahead."""
        return time.time() - self.renewed_sec


class Lease:
    """Context in which this process is the sweep's driver. Raises UserError where another one is.

    `lost`: another driver has taken the sweep over, since this one was silent for too long; it must not write any more.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.token = uuid4().hex
        self.lost = False
        self.compares = True
        """Whether the place has conditional writes; without them, drivers read again after `SETTLE_SEC`."""
        self._seen = Seen(None)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        seen = look(self.folder, LEASE)
        holder = _holder(seen)
        if holder is not None and not self._is_gone(holder):
            raise self._held(holder)
        try:
            self._write(seen)
        except OutdatedError:
            self._refuse(_holder(look(self.folder, LEASE)))
        self.compares = conditions_hold(self.folder, LEASE, self._seen)
        if not self.compares:
            time.sleep(SETTLE_SEC)
        if not self._is_own():
            self._refuse(self.holder())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self.lost:
            return
        try:
            seen = look(self.folder, LEASE)
            if self._is_mine(seen):
                remove_where(self.folder, LEASE, seen)
        except UserError as problem:  # not raised in place of the sweep's own error
            logger.warning("%s: the lease couldn't be given back (%s); the sweep is free in %.0f s", self.folder.url, problem, STALE_SEC)

    def check(self) -> None:
        """Raise UserError where the lease is lost."""
        if self.lost:
            raise UserError(f"{self.folder.url}: another process has taken this sweep over, since this one was silent; it goes on there")

    def holder(self) -> Holder | None:
        """The lease's holder; None where there is no readable lease."""
        return _holder(look(self.folder, LEASE))

    def _held(self, holder: Holder) -> UserError:
        ago = max(0.0, holder.age_sec)
        return UserError(
            f"{self.folder.url}: process {holder.pid} on {holder.host} runs this sweep (last heard of {ago:.0f} s ago); wait for it or "
            f"stop it there; if it is gone, the sweep is free {max(1.0, STALE_SEC - ago):.0f} s from now"
        )

    def _refuse(self, holder: Holder | None) -> None:
        who = f" (process {holder.pid} on {holder.host})" if holder is not None else ""
        raise UserError(f"{self.folder.url}: another process{who} began to run this sweep at the same moment; one of them is right")

    def _is_gone(self, holder: Holder) -> bool:
        if holder.lives:  # a suspended laptop's runs here, however old its lease is
            return False
        if holder.ended or holder.age_sec > MOST_SKEW_SEC:
            return True
        logger.warning("%s: waiting %.0f s to see whether %s still runs this sweep", self.folder.url, WATCH_SEC, holder.host)
        ends_sec = time.monotonic() + WATCH_SEC
        while time.monotonic() < ends_sec:
            time.sleep(min(1.0, WATCH_SEC / 10))
            if self.holder() != holder:
                return False
        return True

    def _is_own(self) -> bool:
        return self._is_mine(look(self.folder, LEASE))

    def _is_mine(self, seen: Seen) -> bool:
        holder = _holder(seen)
        return holder is not None and holder.token == self.token

    def _is_lost(self, seen: Seen) -> bool:
        """Whether another driver has the lease, or had it and ended while this one was silent. A lease removed by hand isn't lost."""
        holder, before = _holder(seen), _holder(self._seen)
        if holder is None:
            return before is not None and before.age_sec > STALE_SEC
        return holder.token != self.token

    def _write(self, seen: Seen) -> None:
        """Write the lease as this process's. Raises OutdatedError where it isn't as seen."""
        own = Holder(self.token, socket.gethostname(), os.getpid(), _started(os.getpid()), time.time(), *_system())
        self._seen = write_where(self.folder, LEASE, json.dumps(asdict(own)).encode(), seen)

    def _renew(self) -> None:
        while not self.lost and not self._stop.wait(RENEW_SEC):
            with suppress(OutdatedError):  # changed between read and write; the next round sees it
                try:
                    seen = look(self.folder, LEASE)
                    self.lost = self._is_lost(seen)
                    if not self.lost:
                        self._write(seen)
                except UserError as error:  # storage unreachable; the lease may become stale, which the next round sees
                    logger.warning("the lease couldn't be renewed: %s", error)


def check_free(folder: Folder) -> None:
    """Raise UserError where a driver runs the sweep according to its lease; writes nothing and doesn't wait."""
    lease = Lease(folder)
    holder = lease.holder()
    if holder is not None and holder.lives:
        raise lease._held(holder)


def is_driven(folder: Folder) -> bool:
    """Whether a driver seems to run the sweep, without waiting. One whose clock is ahead of this machine's counts as running."""
    holder = Lease(folder).holder()
    return holder is not None and not holder.ended and (holder.is_running or holder.age_sec <= STALE_SEC)


def _holder(seen: Seen) -> Holder | None:
    known = {one.name for one in fields(Holder)}
    try:
        return Holder(**{key: value for key, value in json.loads(seen.content or b"").items() if key in known})
    except (ValueError, TypeError, AttributeError):
        return None


def _system() -> tuple[str, str]:
    """This machine's boot id and this process's PID namespace; "" where the system doesn't tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return "", ""


def _started(pid: int) -> str:
    """Start time of a local process in clock ticks; "" where there is no such process, STARTED_SOMETIME where the system doesn't tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return "" if not _alive(pid) else STARTED_SOMETIME


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
