"""What goes wrong at a place, what of it passes by itself, and how long that is waited for."""

from __future__ import annotations

import errno
import logging
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

from fewshot_ray.errors import FullError, UnreachableError, UserError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

SHORT_PATIENCE_SEC = 10.0
"""For commands at a terminal, and where nothing else was set."""
LONG_PATIENCE_SEC = 600.0
"""For a sweep's driver and workers: a store's outage should not end what has run for hours."""
FIRST_DELAY_SEC = 0.1
LONGEST_DELAY_SEC = 10.0
QUIET_SEC = 1.0
"""What is over sooner is not worth a line in the log."""

# Of NFS and FUSE as well as of a socket; EBUSY and ENOTEMPTY where another machine still holds what is removed.
_PASSING_ERRNOS = {errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENOTEMPTY, errno.EAGAIN, errno.ENOLCK, errno.ENOTCONN} | {
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH)
}
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISSING_STATUSES = {404, 410}
_PASSING_STATUSES = {408, 425, 429, *range(500, 600)} - {501, 505, 507}
# Whatever their status. NoSuchUpload: an upload in parts that was completed, or dropped, while the answer was lost.
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
"""What the clients raise that is no OSError: of S3, of HTTP (the hub's is httpx2), FTP, Google, Azure and SFTP."""
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

# The first is the process's; those after it are the blocks' of `patience`, in any thread.
_patience_sec = [SHORT_PATIENCE_SEC]
# Neither the seeds of a training are touched, nor do forked processes wait in step.
_jitter = random.SystemRandom()


def set_patience(seconds: float) -> None:
    """For how long every operation in this process goes on trying, from its first transient error; 0 is once."""
    _patience_sec[0] = seconds


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """`set_patience` for a block, in all of this process's threads; of several blocks at a time the longest holds."""
    _patience_sec.append(seconds)
    try:
        yield
    finally:
        _patience_sec.remove(seconds)


def place_errors() -> tuple[type[Exception], ...]:
    """What opening, reading and writing at a place raise: the disk, unknown protocols and damaged files (ValueError), missing clients.

    The clients beneath fsspec also raise errors of their own (no credentials, no route); only a client that was loaded can.
    """
    return (OSError, ValueError, ImportError, NotImplementedError, *_loaded(_CLIENT_ERRORS))


def _loaded(names: dict[str, str]) -> list[type[Exception]]:
    return [getattr(sys.modules[module], name) for module in names if module in sys.modules for name in names[module].split()]


def reason(error: Exception) -> str:
    """What one of `place_errors` says, on one line."""
    # Some clients say "no such file" of whatever went wrong: then it is what they made it of.
    told = error.__cause__ if isinstance(error, FileNotFoundError) and not is_missing(error) and error.__cause__ else error
    text = getattr(told, "strerror", None) or str(told) or ("no answer" if isinstance(told, TimeoutError) else type(told).__name__)
    if is_mute(error):
        text = f"{text}, which is all that S3 says to a HEAD, most often where a token has expired"
    # httpx2's second line is where to read about HTTP.
    return " ".join(str(text).partition("\nFor more information check")[0].split())


def is_missing(error: BaseException) -> bool:
    """Whether one of `place_errors` says that there is no such file or place, and not that it couldn't be looked for."""
    if not isinstance(error, FileNotFoundError) or is_transient(error):
        return False
    answer = answer_of(error)
    return answer is None or answer.status in _MISSING_STATUSES


def is_mute(error: BaseException) -> bool:
    """Whether S3 refused a HEAD as a bad request: what is bad about it stands in the body, which only other requests' answers have."""
    answer = answer_of(error)
    return answer is not None and answer.status == 400 and answer.code in ("400", "")


def is_transient(error: BaseException) -> bool:
    """Whether one of `place_errors` may pass by itself: a store that is busy, broken or out of reach, an answer cut short or
    not the store's, a network disk.

    Refused credentials, a missing bucket, a full disk and invalid names do not.
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
    """Whether the disk, the store or what one may put there is used up."""
    answer = answer_of(error)
    if answer is not None and (answer.status == 507 or "Quota" in answer.code or "StorageFull" in answer.code):
        return True
    return getattr(error, "errno", None) in _FULL_ERRNOS


def fault_of_the_place(error: UserError) -> FullError | UnreachableError | None:
    """`error` as one of the place, where what it was raised from is one: used up, or silent for longer than patience lasts.

    None where it is neither, and so says something about what was asked for. It can be pickled, without what it was raised from.
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
    """A store's HTTP answer: its status and S3's code. `foreign`: a gateway's 404, which says nothing about what the store has."""

    status: int
    code: str
    foreign: bool


def answer_of(error: BaseException | None) -> Answer | None:
    """The one that is behind an error: s3fs makes an OSError of it."""
    for cause in causes(error):
        response, status = getattr(cause, "response", None), getattr(cause, "status", None)
        if isinstance(response, dict):
            status, code = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), str(response.get("Error", {}).get("Code", ""))
            # Only to a HEAD would S3 say no more than 404.
            is_head = getattr(cause, "operation_name", "Head").startswith("Head")
            return Answer(status, code, foreign=status == 404 and not is_head and not code.startswith("NoSuch"))
        # aiohttp's errors have a `code` too, of its own making.
        googles = getattr(cause, "code", None) if type(cause).__module__.startswith("gcsfs") else None
        found = (status, getattr(cause, "status_code", None), getattr(response, "status_code", None), googles)
        status = next((number for number in found if isinstance(number, int) and 100 <= number < 600), None)
        if status is not None:
            return Answer(status, "", foreign=False)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was made of."""
    while error is not None:
        yield error
        error = error.__cause__


def patiently(attempt: Callable[[], Result], what: str) -> Result:
    """What `attempt` returns; after each transient error it is tried again, with exponential backoff and full jitter.

    Raises TimeoutError where patience ends, and at once whatever is not transient. `what` is how the log calls the place,
    in a line when it has kept us waiting and one when it is back.
    """
    began, first_failed, told = time.monotonic(), 0.0, False
    longest_sec = FIRST_DELAY_SEC
    while True:
        try:
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
