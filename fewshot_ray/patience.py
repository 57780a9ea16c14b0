"""Errors of places (disks, stores): which are transient, and how long they are retried."""

from __future__ import annotations

import errno
import logging
import random
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from fewshot_ray.errors import FullError, UnreachableError, UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SHORT_PATIENCE_SEC = 10.0
"""Retry time for commands at a terminal, and the default."""
LONG_PATIENCE_SEC = 600.0
"""Retry time for a sweep's driver and workers, so that a store's outage doesn't end a run of hours."""
FIRST_DELAY_SEC = 0.1
LONGEST_DELAY_SEC = 10.0
QUIET_SEC = 1.0
"""Shorter waits aren't logged."""

# From NFS and FUSE as well as from sockets; EBUSY and ENOTEMPTY where another machine still uses what is removed.
_PASSING_ERRNOS = {errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENOTEMPTY, errno.EAGAIN, errno.ENOLCK, errno.ENOTCONN} | {
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH)
}
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING_STATUSES = {404, 410}
_PASSING_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505, 507}
# With any status. NoSuchUpload: a multipart upload that was completed or dropped while the answer was lost.
_PASSING_CODES = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError"} | {
    *("ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"),
    "NoSuchUpload",
}

_CLIENT_ERRORS = {
    "botocore.exceptions": "BotoCoreError ClientError",
    "botocore.parsers": "ResponseParserError",
    "aiohttp": "ClientError",
    "httpx2": "HTTPError InvalidURL",
    "httpx": "HTTPError InvalidURL",
    "ftplib": "Error",
    "gcsfs.retry": "HttpError ChecksumError",
    "google.auth.exceptions": "GoogleAuthError",
    "azure.core.exceptions": "AzureError",
    "paramiko.ssh_exception": "SSHException",
}
"""Errors of the clients that aren't OSErrors: S3, HTTP (the hub's is httpx2), FTP, Google, Azure and SFTP."""
_PASSING_CLIENT_ERRORS = {
    "botocore.exceptions": "HTTPClientError ConnectionError IncompleteReadError ChecksumError FlexibleChecksumError "
    "CredentialRetrievalError MetadataRetrievalError",
    "botocore.parsers": "ResponseParserError",
    "aiohttp": "ClientConnectionError ClientPayloadError",
    "httpx2": "TransportError",
    "httpx": "TransportError",
    "requests.exceptions": "ConnectionError Timeout ChunkedEncodingError",
    "gcsfs.retry": "ChecksumError",
    "google.auth.exceptions": "TransportError",
    "azure.core.exceptions": "ServiceRequestError ServiceResponseError",
}

_CLIENT_MISTAKES = (TypeError, AttributeError, LookupError, AssertionError, RecursionError, tarfile.TarError, zipfile.BadZipFile)

# The first is the process's; those after it are the blocks' of `patience`, in any thread.
_patience_sec = [SHORT_PATIENCE_SEC]
# An own generator: training's seeds aren't touched, and forked processes don't wait in step.
_jitter = random.SystemRandom()


def set_patience(seconds: float) -> None:
    """Set how long operations in this process are retried after their first transient error; 0 for one attempt."""
    _patience_sec[0] = seconds


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Context with another retry time, in all threads of this process; of overlapping blocks the longest time holds."""
    _patience_sec.append(seconds)
    try:
        yield
    finally:
        _patience_sec.remove(seconds)


def place_errors() -> tuple[type[Exception], ...]:
    """The errors of opening, reading and writing at a place: the disk's, unknown protocols and damaged files (ValueError), missing clients.

    The clients below fsspec also raise errors of their own (no credentials, no route); only those of loaded clients are included.
    """
    return (OSError, ValueError, ImportError, NotImplementedError, *_loaded(_CLIENT_ERRORS))


def _loaded(names: dict[str, str]) -> list[type[Exception]]:
    return [getattr(sys.modules[module], name) for module in names if module in sys.modules for name in names[module].split()]


@contextmanager
def client_mistakes() -> Iterator[None]:
    """Context that turns an fsspec client's programming errors into an OSError that says so; errors of this package's own code pass.

    Clients take any URL for one of theirs and any JSON for their store's answer, and follow a listing that contains itself.
    """
    try:
        yield
    except _CLIENT_MISTAKES as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        if str(frames[-1].f_globals.get("__name__")).partition(".")[0] == __package__:
            raise
        if isinstance(error, RecursionError):
            raise OSError("its folders go on without end") from error
        raise OSError(f"its client can't make sense of it: {type(error).__name__}: {error}") from error


def reason(error: Exception) -> str:
    """The text of one of `place_errors`, in one line."""
    # Some clients say "no such file" of whatever went wrong: then it is what they made it of.
    told = error.__cause__ if isinstance(error, FileNotFoundError) and not is_missing(error) and error.__cause__ else error
    text = getattr(told, "strerror", None) or str(told) or ("no answer" if isinstance(told, TimeoutError) else type(told).__name__)
    if is_mute(error):
        text = f"{text}, which is all that S3 says to a HEAD, most often where a token has expired"
    # httpx2's second line is where to read about HTTP.
    return " ".join(str(text).partition("\nFor more information check")[0].split())


def is_missing(error: BaseException) -> bool:
    """Whether one of `place_errors` means that there is no such file or place, rather than that it couldn't be looked up."""
    if not isinstance(error, FileNotFoundError) or is_transient(error):
        return False
    answer = answer_of(error)
    return answer is None or answer.status in _MISSING_STATUSES


def is_mute(error: BaseException) -> bool:
    """Whether S3 answered a HEAD with 400, whose reason is in the body, which only other requests have."""
    answer = answer_of(error)
    return answer is not None and answer.status == 400 and answer.code in ("400", "")


def is_transient(error: BaseException) -> bool:
    """Whether one of `place_errors` is transient.

    That is a store that is busy, failing or unreachable, an incomplete or foreign answer, a network disk. Refused credentials, a missing
    bucket, a full disk and invalid names aren't.
    """
    answer = answer_of(error)
    if answer is not None:
        return answer.code in _PASSING_CODES or answer.foreign or (answer.status in _PASSING_STATUSES and not is_full(error))
    chain = list(causes(error))
    if any(refused in str(cause) for cause in chain for refused in ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")):
        return False
    if any(isinstance(cause, (ConnectionError, TimeoutError, *_loaded(_PASSING_CLIENT_ERRORS))) for cause in chain):
        return True
    return isinstance(error, OSError) and error.errno in _PASSING_ERRNOS


def is_full(error: BaseException) -> bool:
    """Whether the disk, the store or a quota is full."""
    answer = answer_of(error)
    if answer is not None and (answer.status == 507 or "Quota" in answer.code or "StorageFull" in answer.code):
        return True
    return getattr(error, "errno", None) in _FULL_ERRNOS


def fault_of_the_place(error: UserError) -> FullError | UnreachableError | None:
    """FullError or UnreachableError where such a fault caused `error`; None where it has another cause.

    The result can be pickled, without the error's causes.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (FullError, UnreachableError)):
            return type(cause)(str(error))
        if is_full(cause):
            return FullError(str(error))
        if isinstance(cause, place_errors()) and is_transient(cause):
            return UnreachableError(str(error))
        cause = cause.__cause__
    return None


class Answer(NamedTuple):
    """Status and S3 code of a store's HTTP answer. `foreign`: a gateway's 404, which says nothing about the store's contents."""

    status: int
    code: str
    foreign: bool


def answer_of(error: BaseException | None) -> Answer | None:
    """The HTTP answer that caused an error, which s3fs turns into an OSError; None without one."""
    for cause in causes(error):
        response, status = getattr(cause, "response", None), getattr(cause, "status", None)
        if isinstance(response, dict):
            status, code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), str(response.get("Error", {}).get("Code", ""))
            # S3 gives no more than 404 only to a HEAD.
            is_head = getattr(cause, "operation_name", "Head").startswith("Head")
            return Answer(status, code, foreign=status == 404 and not is_head and not code.startswith("NoSuch"))
        # aiohttp's errors also have a `code`, of another meaning.
        googles = getattr(cause, "code", None) if type(cause).__module__.startswith("gcsfs") else None
        found = (status, getattr(cause, "status_code", None), getattr(response, "status_code", None), googles)
        status = next((number for number in found if isinstance(number, int) and 100 <= number < 600), None)
        if status is not None:
            return Answer(status, "", foreign=False)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__


def patiently(attempt: Callable[[], Result], what: str) -> Result:
    """The result of `attempt`, which is retried after transient errors, with exponential backoff and full jitter.

    Raises TimeoutError when the retry time has passed, and other errors at once. `what` names the place in the log, which has a line when
    the wait gets long and one when the place is back.
    """
    began, first_failed, told = time.monotonic(), 0.0, False
    longest_sec = FIRST_DELAY_SEC
    while True:
        try:
            with client_mistakes():
                result = attempt()
        except place_errors() as error:
            if not is_transient(error):
                raise
            now = time.monotonic()
            first_failed = first_failed or now
            limit_sec = max(_patience_sec[1:], default=_patience_sec[0])
            left_sec = first_failed + limit_sec - now
            if left_sec <= 0:
                raise TimeoutError(f"{reason(error)}; tried for {_duration(now - began)}") from error
            if not told and now - began >= QUIET_SEC:
                told = True
                logger.warning("%s: does not answer (%s); trying again for up to %s", what, reason(error), _duration(limit_sec))
        else:
            if told:
                logger.warning("%s: is back after %s", what, _duration(time.monotonic() - began))
            return result
        time.sleep(min(left_sec, _jitter.uniform(0, longest_sec)))
        longest_sec = min(2 * longest_sec, LONGEST_DELAY_SEC)


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
