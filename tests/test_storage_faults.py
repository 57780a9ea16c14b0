"""What a store does wrong: what passes is waited out and leaves everything whole, what stays is one line at once."""

from __future__ import annotations

import errno
import io
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_safetensors

from fewshot_ray import patience as waiting
from fewshot_ray import storage
from fewshot_ray.data.places import pictures
from fewshot_ray.errors import FullError, UnreachableError, UserError
from fewshot_ray.models.source import locate_pipeline
from fewshot_ray.models.weights import read_weights
from fewshot_ray.patience import fault_of_the_place, is_transient, patience, patiently, set_patience
from fewshot_ray.storage import Folder, writing
from fewshot_ray.writable import check_writable
from tests.faulty_proxy import FORBIDDEN, KEYS, LOST, RESET, SLOW_DOWN, TRUNCATE, Fault, FaultyProxy, s3_server

CONTENT = random.Random(0).randbytes(60_000)

Act = Callable[[Folder], Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short waits, and a patience that no test needs."""
    monkeypatch.setattr(waiting, "FIRST_DELAY_SEC", 0.02)
    monkeypatch.setattr(waiting, "LONGEST_DELAY_SEC", 0.1)
    set_patience(20)
    yield
    set_patience(waiting.SHORT_PATIENCE_SEC)


@pytest.fixture(scope="module")
def running() -> Iterator[FaultyProxy]:
    """The proxy before the store, for all tests: the client must recover from each."""
    # In memory where there is such a place: the store syncs every file.
    folder = Path(tempfile.mkdtemp(prefix="fewshot-ray-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    with pytest.MonkeyPatch.context() as patch, s3_server(folder) as port, FaultyProxy(port, seed=1) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        forget_clients()
        yield proxy
    forget_clients()
    shutil.rmtree(folder)


@pytest.fixture
def proxy(running: FaultyProxy) -> Iterator[FaultyProxy]:
    """Without faults yet."""
    yield running
    running.faults.clear()
    running.chances.clear()


@pytest.fixture
def folder(proxy: FaultyProxy) -> Folder:
    """Of this test alone, with the file `here` and the folder `below` of two files."""
    folder = Folder(f"s3://bucket/{uuid4().hex}")
    for name in ("here", "below/a", "below/b"):
        folder.write_bytes(name, CONTENT)
    proxy.requests.clear()
    return folder


def forget_clients() -> None:
    """The next client takes its endpoint and its keys from the environment as it is then."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def names_below(folder: Folder, name: str = "") -> list[str]:
    return (folder / name if name else folder).names()


ACTS: dict[str, tuple[Act, Any, Act, Any]] = {
    # What is done, what it returns, what is then asked of the healthy store, the answer.
    "write": (lambda f: f.write_bytes("new", CONTENT[::-1]), None, lambda f: f.read_bytes("new"), CONTENT[::-1]),
    "replace": (lambda f: f.write_bytes("here", b"less"), None, lambda f: f.read_bytes("here"), b"less"),
    "read": (lambda f: f.read_bytes("here"), CONTENT, names_below, ["below", "here"]),
    "exists": (lambda f: f.exists("here"), True, names_below, ["below", "here"]),
    "exists not": (lambda f: f.exists("nothing"), False, names_below, ["below", "here"]),
    "folder exists": (lambda f: (f / "below").exists(), True, names_below, ["below", "here"]),
    "bucket exists": (lambda f: Folder("s3://bucket").exists(), True, names_below, ["below", "here"]),
    "names": (names_below, ["below", "here"], names_below, ["below", "here"]),
    "no names": (lambda f: names_below(f, "nothing"), [], names_below, ["below", "here"]),
    "remove a file": (lambda f: f.remove("here"), None, names_below, ["below"]),
    "remove a folder": (lambda f: f.remove("below"), None, names_below, ["here"]),
    "check_writable": (check_writable, None, names_below, ["below", "here"]),
}
PASSING = {
    "SlowDown": [SLOW_DOWN] * 3,
    "other statuses": [Fault("status", status=status, code=code) for status, code in ((500, "InternalError"), (429, "Many"), (502, ""))],
    "resets": [RESET, Fault("delay", seconds=0.1), RESET],
    "lost answers": [LOST] * 2,
    "truncated bodies": [TRUNCATE] * 3,
    "a gateway's 404": [Fault("status", method, status=404, body=b"default backend - 404") for method in ("GET", "PUT", "POST", "DELETE")],
}


@pytest.mark.parametrize("faults", PASSING.values(), ids=PASSING.keys())
@pytest.mark.parametrize(("act", "result", "ask", "answer"), ACTS.values(), ids=ACTS.keys())
def test_what_passes_is_survived(
    act: Act, result: Any, ask: Act, answer: Any, faults: list[Fault], folder: Folder, proxy: FaultyProxy
) -> None:
    """Oracle: what the same operation does at a healthy store."""
    proxy.faults.extend(faults)
    assert act(folder) == result
    assert len(proxy.requests) < 30
    proxy.faults.clear()
    assert ask(folder) == answer


@pytest.mark.parametrize(("act", "result", "ask", "answer"), ACTS.values(), ids=ACTS.keys())
def test_what_is_refused_is_one_line_at_once(act: Act, result: Any, ask: Act, answer: Any, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the store's own words, after one request."""
    set_patience(600)
    proxy.chances[FORBIDDEN] = 1.0
    with pytest.raises(
        UserError, match=r"^storage s3://bucket\S*: cannot .* \(.*(Forbidden|AccessDenied).*\); a place you may .* is right$"
    ):
        act(folder)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(("status", "code"), [(301, "PermanentRedirect"), (400, "AuthorizationHeaderMalformed")])
def test_another_region_is_said(status: int, code: str, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: S3's answers to a request that names the wrong region; the remedy, at once."""
    set_patience(600)
    proxy.faults.extend([Fault("status", status=status, code=code, method="PUT")] * 2)
    with pytest.raises(
        UserError, match=r"^storage s3://bucket\S*: cannot write .*; AWS_DEFAULT_REGION naming the bucket's own region is right$"
    ):
        folder.write_bytes("a", b"b")
    assert len(proxy.requests) <= 4


def test_what_is_missing_is_not_waited_for(folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the requests of one attempt."""
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")
    assert len(proxy.requests) <= 3


@pytest.mark.parametrize("faults", [[RESET], [SLOW_DOWN] * 2, [LOST]], ids=["reset", "SlowDown", "lost"])
def test_missing_stays_missing_after_an_error(faults: list[Fault], folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: FileNotFoundError, not what went before it."""
    proxy.faults.extend(faults)
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("nothing")


def test_a_listing_that_is_no_listing(folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the names, after pages of something else (a gateway's, a captive portal's)."""
    proxy.faults.extend([Fault("status", status=200, body=b"<html>please sign in</html"), Fault("status", status=503, body=b"sorry")])
    assert folder.names() == ["below", "here"]
    assert not proxy.faults


def test_an_outage_is_survived_by_all_threads(
    folder: Folder, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Oracle: what each operation gives at a healthy store; one line when it began and one when it was over, each."""
    monkeypatch.setattr(waiting, "QUIET_SEC", 0.5)
    acts = [ACTS[name] for name in ("write", "read", "exists", "no names")]
    with caplog.at_level(logging.WARNING, "fewshot_ray"), proxy.outage(2), ThreadPoolExecutor(len(acts)) as pool:
        results = list(pool.map(lambda act: act[0](folder), acts))
    assert results == [act[1] for act in acts]
    assert folder.read_bytes("new") == CONTENT[::-1]
    lines = [record.getMessage() for record in caplog.records]
    assert sum("does not answer" in line and line.endswith("trying again for up to 20 s") for line in lines) == len(acts)
    assert sum("is back after " in line for line in lines) == len(acts)
    assert len(lines) == 2 * len(acts)


@pytest.mark.parametrize(("act", "result", "ask", "answer"), ACTS.values(), ids=ACTS.keys())
def test_patience_ends(act: Act, result: Any, ask: Act, answer: Any, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the time that was set, in the message and on the clock; afterwards the store is as it was."""
    set_patience(0.25)
    proxy.down()
    began = time.monotonic()
    try:
        with pytest.raises(UserError, match=r"Could not connect .*; tried for [\d.]+ s\); a place that answers is right$"):
            act(folder)
    finally:
        proxy.up()
    assert 0.25 <= time.monotonic() - began < 10
    set_patience(20)
    assert names_below(folder) == ["below", "here"]
    assert folder.read_bytes("here") == CONTENT


@pytest.mark.parametrize("method", ["PUT", "GET", "HEAD"])
def test_silence_is_bounded(method: str, folder: Folder, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the time a store may say nothing, also before it lets an upload begin."""
    monkeypatch.setattr(storage, "SILENCE_SEC", 0.5)
    monkeypatch.setattr(storage, "SLOWEST_BYTES_PER_SEC", 10_000_000)
    proxy.faults.append(Fault("silence", method=method, seconds=20))
    began = time.monotonic()
    folder.write_bytes("new", CONTENT)
    assert folder.read_bytes("new") == CONTENT
    assert 0.5 <= time.monotonic() - began < 15


def test_a_large_upload_does_not_begin_anew_for_one_part(folder: Folder, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the content; its three parts are sent once each and two of them once more; the end of the upload, whose answer is lost,
    either is acknowledged when it is asked for again or makes the whole upload anew."""
    monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
    content = CONTENT[:1024] * (11 << 10)
    proxy.faults.extend(
        [Fault("status", method="PUT", path="partNumber=1", status=500, code="InternalError"), Fault("lost", "PUT", "partNumber=2")]
    )
    folder.write_bytes("large", content)
    assert folder.read_bytes("large") == content
    assert sum("partNumber" in path for _, path, _ in proxy.requests) == 5
    proxy.faults.append(Fault("lost", "POST", "uploadId="))
    folder.write_bytes("large", content[::-1])
    assert folder.read_bytes("large") == content[::-1]


def test_many_threads_through_a_bad_line(folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the bytes that each thread wrote."""
    proxy.chances.update({SLOW_DOWN: 0.1, RESET: 0.1, LOST: 0.1, TRUNCATE: 0.1})

    def write_and_read(thread: int) -> bool:
        mine, content = folder / f"thread{thread}", bytes([thread]) * (100_000 + thread)
        mine.write_bytes("x", content)
        mine.write_bytes("y", content)
        mine.remove("y")
        return mine.names() == ["x"] and mine.read_bytes("x") == content

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, range(8)))
    proxy.chances.clear()
    assert folder.names() == ["below", "here", *(f"thread{thread}" for thread in range(8))]


FORK = """
import os, sys
from fewshot_ray.storage import Folder
folder = Folder(sys.argv[1])
whole = folder.read_bytes("here")
child = os.fork()
assert folder.read_bytes("here") == whole
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert folder.read_bytes("here") == whole
"""


def test_a_forked_process_has_a_client_of_its_own(folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: both processes read what one of them had read before."""
    proxy.faults.extend([RESET, SLOW_DOWN])
    subprocess.run([sys.executable, "-c", FORK, folder.url], timeout=60, check=True)


@pytest.mark.parametrize(
    ("variable", "value", "bucket", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "bucket", "SignatureDoesNotMatch|signature|Forbidden|403"),
        ("AWS_ACCESS_KEY_ID", "nobody", "bucket", "InvalidAccessKeyId|Access Key Id|Forbidden|403"),
        ("AWS_DEFAULT_REGION", "us-east-1", "nosuchbucket", "bucket does not exist"),
        ("AWS_DEFAULT_REGION", "us-east-1", "no such bucket", "Invalid bucket name|bucket"),
    ],
)
def test_what_stays_wrong_ends_within_seconds(
    variable: str, value: str, bucket: str, message: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the store's words, with ten minutes of patience."""
    set_patience(600)
    monkeypatch.setenv(variable, value)
    forget_clients()
    began = time.monotonic()
    try:
        with pytest.raises(UserError, match=message) as refused:
            Folder(f"s3://{bucket}/x").write_text("state", "x")
    finally:
        forget_clients()
    assert "\n" not in str(refused.value)
    assert time.monotonic() - began < 60


# On a disk.


def failing(error: int, times: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which raises `error` the first `times` times, as a network disk does; such a disk can't be had here."""
    left = iter(range(times))

    def call(*args: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise OSError(error, os.strerror(error))
        return function(*args, **options)

    return call


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["replace", "fsync", "stat", "listdir", "lstat", "unlink"])
def test_a_network_disk_that_comes_back(call: str, error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what each operation does at a healthy disk, and no temporary file."""
    folder = Folder(tmp_path)
    folder.write_text("gone", "x")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(error, 2, getattr(os, call)))
        folder.write_bytes("state", CONTENT)
        assert folder.exists("state")
        assert not folder.exists("nothing")
        folder.remove("gone")
        assert folder.names() == ["state"]
    assert os.listdir(tmp_path) == ["state"]
    assert folder.read_bytes("state") == CONTENT


def test_a_network_disk_that_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: UserError from every operation, never False, no names or a missing file; the old content afterwards."""
    set_patience(0.1)
    folder = Folder(tmp_path)
    folder.write_text("state", "old")
    with monkeypatch.context() as patch:
        for call in ("replace", "stat", "listdir", "lstat"):
            patch.setattr(os, call, failing(errno.ESTALE, 10**6, None))
        acts = (
            *(lambda: folder.write_text("state", "new"), lambda: folder.exists("state"), lambda: folder.exists("nothing")),
            *(folder.names, lambda: folder.remove("state")),
        )
        for act in acts:
            with pytest.raises(UserError, match=r"Stale file handle; tried for [\d.]+ s\); a place that answers is right"):
                act()
    assert os.listdir(tmp_path) == ["state"]
    assert folder.read_text("state") == "old"


@pytest.mark.parametrize(
    ("error", "right"),
    [(errno.EDQUOT, "freeing space there, or another place,"), (errno.EROFS, "a place you may"), (errno.EACCES, "a place you may")],
)
def test_a_disk_that_refuses(error: int, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the kernel's words, at the first attempt; a quota can't be had here, and root may write anywhere."""
    monkeypatch.setattr(os, "replace", failing(error, 1, os.replace))
    with pytest.raises(UserError, match=rf"\({os.strerror(error)}\); {right}"):
        Folder(tmp_path).write_text("state", "x")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [(errno.ENOSPC, FullError), (errno.EDQUOT, FullError), (errno.EIO, UnreachableError), (errno.EACCES, None), (errno.EROFS, None)],
    ids=str,
)
def test_whose_fault_a_refusal_is(error: int, expected: type[UserError] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand. What is full or away says nothing about a trial; the words stay, also where the error is pickled."""
    set_patience(0)
    monkeypatch.setattr(os, "replace", failing(error, 1, os.replace))
    with pytest.raises(UserError) as refused:
        Folder(tmp_path).write_text("state", "x")
    fault = fault_of_the_place(refused.value)
    assert (fault and type(fault)) == expected
    if fault is not None:
        copy = pickle.loads(pickle.dumps(fault))
        assert (type(copy), str(copy)) == (expected, str(refused.value))


def test_writing_by_other_means_is_refused_alike() -> None:
    """Oracle: /dev/full, which refuses every byte as a full disk does."""
    with (
        pytest.raises(UserError, match=r"storage /dev/full: cannot be written \(No space left on device\); freeing space") as refused,
        writing("/dev/full"),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        file.write(b"x")
    assert isinstance(fault_of_the_place(refused.value), FullError)


def test_what_was_asked_for_is_no_fault_of_the_place() -> None:
    """Oracle: an error without a cause."""
    assert fault_of_the_place(UserError("train.lr: too large")) is None


FULL = """
import os, sys, time
from fewshot_ray.errors import UserError
from fewshot_ray.patience import set_patience
from fewshot_ray.storage import Folder
set_patience(600)
folder, began = Folder(sys.argv[1]), time.monotonic()
folder.write_bytes("state", b"old" * 1000)
try:
    folder.write_bytes("state", bytes(4 << 20))
except UserError as error:
    print(error)
assert time.monotonic() - began < 60
assert folder.names() == ["state"], folder.names()
assert folder.read_bytes("state") == b"old" * 1000
folder.write_bytes("state", b"new" * 1000)
folder.remove("state")
assert os.listdir(sys.argv[1]) == []
"""
MOUNT = 'mount -t tmpfs -o size=1m fewshot-ray-test "$1" && exec "$0" -c "$2" "$1"'
# As root; as anybody; and everywhere, where a container forbids both or there is no unshare, a limit to a file's size in the disk's place.
FULL_DISKS = (
    (["unshare", "--mount", "sh", "-c", MOUNT], "No space left on device"),
    (["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", MOUNT], "No space left on device"),
    (["sh", "-c", 'ulimit -f 1024; trap "" XFSZ; exec "$0" -c "$2" "$1"'], "File too large"),
)


def test_a_full_disk(tmp_path: Path) -> None:
    """Oracle: a disk of 1 MiB, mounted for one process only, that has room again as soon as the write is given up."""
    answers: dict[str, str] = {}
    for command, message in FULL_DISKS:
        if shutil.which(command[0]) is None:
            continue
        answer = subprocess.run([*command, sys.executable, str(tmp_path), FULL], capture_output=True, text=True, timeout=60)
        assert "Traceback" not in answer.stderr, answer.stderr
        if answer.returncode == 0:
            answers[message] = answer.stdout
    assert "File too large" in answers
    for message, said in answers.items():
        assert said == f"storage {tmp_path}: cannot write state ({message}); freeing space there, or another place, is right\n"


# The waiting itself.


def test_delays_are_bounded_and_no_longer_than_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: full jitter of an exponential backoff: each delay below its bound, the bounds doubling to 10 s; a clock of our own."""
    monkeypatch.undo()
    now, delays = [100.0], []

    def sleep(seconds: float) -> None:
        delays.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(waiting, "_jitter", random.Random(3))

    def attempt() -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    set_patience(600)
    with pytest.raises(TimeoutError, match=r"^reset; tried for 10 min$"):
        patiently(attempt, "x")
    assert now[0] == pytest.approx(700)
    assert all(0 <= delay <= min(0.1 * 2**index, 10) for index, delay in enumerate(delays))
    assert 80 < len(delays) < 250
    set_patience(0)
    with pytest.raises(TimeoutError, match=r"^reset; tried for 0 s$"):
        patiently(attempt, "x")
    assert now[0] == pytest.approx(700)


def test_blocks_of_patience_end_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the longest of those open; the process's own where none is."""

    def now() -> float:
        return max(waiting._patience_sec[1:], default=waiting._patience_sec[0])

    inside, leave = threading.Event(), threading.Event()

    def block() -> None:
        with patience(300):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=block)
    set_patience(5)
    with patience(600):
        thread.start()
        assert inside.wait(10)
        assert now() == 600
    assert now() == 300
    leave.set()
    thread.join()
    assert now() == 5


def answer(status: int, code: str) -> Exception:
    """What s3fs raises at S3's answer."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    return translate_boto_error(ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"))


@pytest.mark.parametrize(
    ("status", "code", "transient"),
    [
        *(
            (503, "SlowDown", True),
            (503, "RequestLimitExceeded", True),
            (429, "429", True),
            (500, "InternalError", True),
            (502, "502", True),
        ),
        *((400, "RequestTimeout", True), (400, "IncompleteBody", True), (409, "OperationAborted", True), (404, "NoSuchUpload", True)),
        *((200, "SlowDown", True), (599, "Unheard", True), (408, "408", True)),
        *((403, "AccessDenied", False), (403, "InvalidAccessKeyId", False), (403, "SignatureDoesNotMatch", False), (401, "401", False)),
        *((403, "403", False), (400, "ExpiredToken", False), (404, "NoSuchBucket", False), (404, "NoSuchKey", False)),
        *((404, "404", True), (404, "", True)),
        *((501, "NotImplemented", False), (507, "XMinioStorageFull", False), (503, "QuotaExceeded", False), (403, "QuotaExceeded", False)),
    ],
)
def test_answers_that_pass_and_answers_that_stay(status: int, code: str, transient: bool) -> None:
    """Oracle: Amazon's table of error responses, and the codes of MinIO and Ceph for a store that is full."""
    assert is_transient(answer(status, code)) == transient


def test_a_certificate_does_not_become_right() -> None:
    """Oracle: botocore's two errors at a TLS connection, of which only the broken handshake passes."""
    from botocore.exceptions import SSLError

    assert not is_transient(SSLError(endpoint_url="https://x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate"))
    assert is_transient(SSLError(endpoint_url="https://x", error="EOF occurred in violation of protocol"))


def encoded(number: int) -> bytes:
    """A picture that no other number has, too large for one read of a stream."""
    stream = io.BytesIO()
    noise = random.Random(number).randbytes(128 * 128 * 3)
    Image.frombytes("RGB", (128, 128), noise).save(stream, "PNG")
    return stream.getvalue()


def as_folder(folder: Folder, images: list[bytes]) -> str:
    for number, image in enumerate(images):
        folder.write_bytes(f"photos/{number}.png", image)
    return f"{folder.url}/photos"


def as_zip(folder: Folder, images: list[bytes]) -> str:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, image in enumerate(images):
            archive.writestr(f"{number}.png", image)
    folder.write_bytes("photos.zip", stream.getvalue())
    return f"{folder.url}/photos.zip"


def as_parquet(folder: Folder, images: list[bytes]) -> str:
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), stream, row_group_size=1)
    folder.write_bytes("photos.parquet", stream.getvalue())
    return f"{folder.url}/photos.parquet"


@pytest.mark.parametrize("kind", [as_folder, as_zip, as_parquet])
def test_images_come_in_spite_of_it(kind: Callable[[Folder, list[bytes]], str], folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the pictures as written, each once and in order, with every third request failing and an outage after the first picture."""
    images = [encoded(number) for number in range(6)]
    place = kind(folder, images)
    proxy.chances = {SLOW_DOWN: 0.15, RESET: 0.1, TRUNCATE: 0.1}
    found = pictures(place)
    got = [next(found)]
    with proxy.outage(0.5):
        got += list(found)
    assert [(picture.content, picture.problem) for picture in got] == [(image, "") for image in images]


def test_weights_and_models_come_in_spite_of_it(folder: Folder, proxy: FaultyProxy, tmp_path: Path) -> None:
    """Oracle: the bytes that were uploaded."""
    tensors = {"weight": torch.arange(3.0)}
    folder.write_bytes("w.safetensors", save_safetensors(tensors))
    for path in (source := locate_pipeline("embedded://digits-ddpm")).rglob("*"):
        if path.is_file():
            folder.write_bytes(f"model/{path.relative_to(source)}", path.read_bytes())
    proxy.faults.extend([SLOW_DOWN, RESET, TRUNCATE, SLOW_DOWN])
    assert read_weights(f"{folder.url}/w.safetensors").tensors["weight"].tolist() == [0.0, 1.0, 2.0]
    proxy.faults.extend([SLOW_DOWN, RESET, SLOW_DOWN, RESET])
    fetched = locate_pipeline(f"{folder.url}/model")
    for path in source.rglob("*.safetensors"):
        assert (fetched / path.relative_to(source)).read_bytes() == path.read_bytes()
    assert not proxy.faults
