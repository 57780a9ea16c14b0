"""Stores that speak S3 and are not AWS: what they lack is gone around or said by `check`, with the setting that helps."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from fewshot_ray import patience as waiting
from fewshot_ray import storage
from fewshot_ray.errors import UserError
from fewshot_ray.patience import set_patience
from fewshot_ray.storage import Folder
from fewshot_ray.writable import check_writable
from tests.faulty_proxy import KEYS, Fault, FaultyProxy, s3_server

CONTENT = random.Random(0).randbytes(60_000)
NOT_IMPLEMENTED = {"status": 501, "code": "NotImplemented"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    """A store, and the proxy before it that leaves out what the test says."""
    with s3_server(tmp_path_factory.mktemp("s3")) as port, FaultyProxy(port) as proxy:
        yield proxy


@pytest.fixture
def proxy(running: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """With the store's keys in the environment, and everything there yet."""
    for name, value in {"ENDPOINT_URL": running.url, "ACCESS_KEY_ID": KEYS[0], "SECRET_ACCESS_KEY": KEYS[1]}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    forget_clients()
    set_patience(600)  # what is refused isn't waited for
    yield running
    set_patience(waiting.SHORT_PATIENCE_SEC)
    running.chances.clear()
    forget_clients()


@pytest.fixture
def folder(proxy: FaultyProxy) -> Folder:
    """Of this test alone, with the file `here` and the folder `below` of two files."""
    folder = Folder(f"s3://bucket/{uuid4().hex}")
    for name in ("here", "below/a", "below/b"):
        folder.write_bytes(name, CONTENT)
    proxy.requests.clear()
    return folder


def forget_clients() -> None:
    """The next client takes its settings from the environment as it is then."""
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def refuse(proxy: FaultyProxy, fault: Fault) -> None:
    """Always."""
    proxy.chances[fault] = 1.0


@pytest.mark.parametrize("code", ["NotImplemented", "MissingContentMD5", "AccessDenied"])
def test_a_store_without_bulk_deletion(code: str, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the names after a folder is removed and `check` has tried the place."""
    refuse(proxy, Fault("status", "POST", "delete", status={"NotImplemented": 501, "AccessDenied": 403}.get(code, 400), code=code))
    folder.remove("below")
    assert folder.names() == ["here"]
    check_writable(folder)
    assert folder.names() == ["here"]


@pytest.mark.parametrize("header", ["x-amz-checksum-", "x-amz-sdk-checksum-"])
def test_a_store_that_knows_no_checksum_headers(header: str, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: content and names, by every operation and by a second client."""
    refuse(proxy, Fault("status", header=header, status=501, code="NotImplemented"))
    check_writable(folder)
    folder.write_bytes("new", CONTENT[::-1])
    assert folder.read_bytes("new") == CONTENT[::-1]
    assert storage.open_file(f"{folder.url}/new").read() == CONTENT[::-1]
    folder.remove("below")
    assert folder.names() == ["here", "new"]


def test_a_store_without_uploads_in_parts(folder: Folder, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the content, which is sent whole."""
    monkeypatch.setattr(storage, "PART_BYTES", 5 << 20)
    refuse(proxy, Fault("status", "POST", "uploads", **NOT_IMPLEMENTED))
    content = CONTENT[:1024] * (11 << 10)
    folder.write_bytes("large", content)
    assert folder.read_bytes("large") == content
    assert [method for method, path, _ in proxy.requests if method == "PUT"] == ["PUT"]


OPERATIONS = {
    "write": Fault("status", "PUT", **NOT_IMPLEMENTED),
    "read": Fault("status", "GET", "again", **NOT_IMPLEMENTED),
    "list": Fault("status", "GET", "list-type", **NOT_IMPLEMENTED),
    "(look for|read)": Fault("status", "HEAD", status=403, code="AccessDenied"),
    "remove": Fault("status", "DELETE", **NOT_IMPLEMENTED),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_a_sweep_needs_is_tried(operation: str, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: a place that refuses one operation of a sweep is refused by `check`, which names it."""
    refuse(proxy, OPERATIONS[operation])
    with pytest.raises(UserError, match=rf"^storage s3://bucket/\S+: cannot {operation} .* is right$"):
        check_writable(folder)


@pytest.mark.parametrize("place", ["disk", "store"])
def test_nothing_of_the_trial_is_left(place: str, folder: Folder, tmp_path: Path) -> None:
    """Oracle: the names before."""
    tried = folder if place == "store" else Folder(tmp_path / "new" / "sweep")
    before = tried.names()
    check_writable(tried)
    assert tried.names() == before
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_keeps_something_else(folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: what is read isn't what was written (a store that keeps the framing of an upload as content): said with the setting."""
    refuse(proxy, Fault("status", "GET", "again", status=200, body=b"5;chunk-signature=0\r\nagain\r\n"))
    with pytest.raises(UserError, match=r"is not what was written.*AWS_REQUEST_CHECKSUM_CALCULATION"):
        check_writable(folder)


EXPIRED = {
    "status": 400,
    "code": "ExpiredToken",
    "body": b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
}


@pytest.mark.parametrize("operation", ["exists", "names", "read_bytes", "write_text", "remove", "check_writable"])
def test_an_expired_token_is_called_that(operation: str, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the store's words, which it keeps from a HEAD (400, no body), and the remedy, at once."""
    refuse(proxy, Fault("status", **EXPIRED))
    arguments = {"exists": ["here"], "read_bytes": ["here"], "write_text": ["new", "x"], "remove": ["below"]}.get(operation, [])
    with pytest.raises(UserError, match=r"The provided token has expired\.\); new credentials \(.*AWS_SESSION_TOKEN.*\) are right$"):
        check_writable(folder) if operation == "check_writable" else getattr(folder, operation)(*arguments)
    assert len(proxy.requests) <= 3  # botocore itself asks in which region the bucket is


def test_an_expired_token_at_the_images(proxy: FaultyProxy) -> None:
    """Oracle: the word, wherever a place is read."""
    from fewshot_ray.data.places import pictures

    refuse(proxy, Fault("status", **EXPIRED))
    with pytest.raises(UserError, match="expired"):
        list(pictures("s3://bucket/images"))


@pytest.mark.parametrize(
    ("status", "code", "message", "right"),
    [
        (403, "RequestTimeTooSkewed", "", "this machine's clock"),
        (403, "SecondLevelDomainForbidden", "", 'FSSPEC_S3=.*"addressing_style": "virtual"'),
        (403, "PathStyleDomainForbidden", "", 'FSSPEC_S3=.*"addressing_style": "virtual"'),
        (403, "InvalidAccessKeyId", "", "AWS_ENDPOINT_URL"),
        (
            *(400, "InvalidRequest"),
            "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters",
            "AWS_REQUEST_CHECKSUM_CALCULATION=when_supported",
        ),
        (400, "AuthorizationHeaderMalformed", "", "AWS_DEFAULT_REGION"),
        (507, "InsufficientStorage", "", "freeing space"),
        (403, "AccessDenied", "", "a place you may read and write"),
    ],
)
def test_the_setting_that_helps_is_named(status: int, code: str, message: str, right: str, folder: Folder, proxy: FaultyProxy) -> None:
    """Oracle: the codes as AWS, Alibaba's OSS and Tencent's COS document them."""
    body = f"<Error><Code>{code}</Code><Message>{message or code}</Message></Error>".encode()
    refuse(proxy, Fault("status", status=status, code=code, body=body))
    with pytest.raises(UserError, match=rf"{right}.* (is|are) right$"):
        folder.write_text("new", "x")


ANSWERS = """
import os, sys
from fewshot_ray.errors import UserError
from fewshot_ray.storage import Folder
try:
    Folder("s3://bucket/x").exists("here")
except UserError as error:
    print(error)
"""


def test_no_credentials_at_all(proxy: FaultyProxy, tmp_path: Path) -> None:
    """Oracle: the variables' names; in a process of its own, without any other source of keys."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONPATH": str(Path(storage.__file__).parents[1]),
    }
    answer = subprocess.run([sys.executable, "-c", ANSWERS], env=environment, capture_output=True, text=True, timeout=60)
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in answer.stdout, answer.stderr
    assert answer.stdout.count("\n") == 1


@pytest.mark.parametrize("value", ["when_supported", "when_required"])
def test_the_users_own_choice_of_checksums_holds(value: str, folder: Folder, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: whether the store is sent the header."""
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", value)
    forget_clients()
    message = "Unsupported header 'x-amz-checksum-crc32' received for this API call."
    body = f"<Error><Code>InvalidArgument</Code><Message>{message}</Message></Error>".encode()
    refuse(proxy, Fault("status", "PUT", header="x-amz-checksum-", status=400, body=body))
    if value == "when_required":
        folder.write_bytes("new", b"x")
        return
    with pytest.raises(UserError, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        folder.write_bytes("new", b"x")
