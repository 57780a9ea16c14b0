"""Places of other clients than S3's, real ones against a server of the test's own: the hub (hf://), its buckets, plain HTTP and FTP."""

from __future__ import annotations

import gc
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub.constants
import pytest

from fewshot_ray.cli.main import hush_clients
from fewshot_ray.data.places import pictures
from fewshot_ray.errors import UserError
from fewshot_ray.models.source import locate_pipeline
from fewshot_ray.models.weights import read_content
from fewshot_ray.patience import patiently, set_patience
from fewshot_ray.spec.wording import nearest
from fewshot_ray.storage import Folder, open_place

PLACES = ("hf://datasets/owner/images", "hf://buckets/owner/images", "http://{host}/images")
READS: dict[str, Callable[[str], Any]] = {
    "a file is there": lambda place: Folder(place).exists("a"),
    "a folder's names": lambda place: Folder(place).names(),
    "a file": lambda place: Folder(place).read_bytes("a"),
    "pictures": lambda place: list(pictures(place)),
    "weights": lambda place: read_content(f"{place}/a.safetensors"),
    "a pipeline": locate_pipeline,
}


class Answering(BaseHTTPRequestHandler):
    """The server's `status` and `body` to whatever is asked."""

    def answer(self) -> None:
        body: bytes = self.server.body  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Type", "text/html" if body.startswith(b"<") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def reached_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """`reached_at(status, body)`: host and port of a server that answers all so (None: nobody listens there); it is the hub as well."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def host(status: int | None, body: bytes = b"") -> str:
        server.status, server.body = status, body  # type: ignore[attr-defined]
        port = server.server_port
        if status is None:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        return f"127.0.0.1:{port}"

    # The hub's client would ask it for a list besides, and keep what it says.
    (tmp_path / "agents.json").write_text('{"harnesses": {}}')
    monkeypatch.setattr(huggingface_hub.constants, "AGENT_HARNESSES_PATH", str(tmp_path / "agents.json"))
    set_patience(0.2)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("place", "status"), [*((place, status) for place in PLACES for status in (None, 500, 503, 401)), ("ftp://{host}/images", None)]
)
def test_what_is_wrong_is_said_in_one_line(place: str, status: int | None, reached_at: Callable[..., str]) -> None:
    """Oracle: what the server did, in each way of reading; nothing of it says that there is no such file."""
    host = reached_at(status)
    for read in READS.values():
        with pytest.raises(UserError) as said:
            read(place.format(host=host))
        assert "\n" not in str(said.value)
        assert "no such" not in str(said.value)
        assert "developer.mozilla" not in str(said.value)
        # Refused is what nobody listens for; aiohttp says that the call failed.
        assert ("onnect" if status is None else str(status)) in str(said.value)


def test_a_file_that_is_missing(reached_at: Callable[..., str]) -> None:
    """Oracle: HTTP's 404."""
    place = f"http://{reached_at(404)}/images"
    assert not Folder(place).exists("a")
    assert Folder(place).names() == []
    with pytest.raises(FileNotFoundError):
        Folder(place).read_bytes("a")
    with pytest.raises(UserError, match="there is no such file or folder"):
        list(pictures(place))


def test_a_hub_that_is_back(reached_at: Callable[..., str]) -> None:
    """Oracle: what passes by itself is waited out: a server that answers 503 at first, then that there is nothing."""
    set_patience(20)
    host = reached_at(503)
    back = threading.Timer(0.5, reached_at, [404])
    back.start()
    assert not Folder(f"http://{host}/images").exists("a")
    back.join()


@pytest.mark.parametrize("body", [b"[1]", b"{}", b"<html>"])
@pytest.mark.parametrize("place", PLACES[:2])
def test_an_answer_that_is_not_the_hubs(place: str, body: bytes, reached_at: Callable[..., str]) -> None:
    """Oracle: a gateway's or another server's 200, in which the hub's client finds nothing: one line, or as if nothing were there."""
    reached_at(200, body)
    for name, read in READS.items():
        said = ""
        try:
            read(place)
        except UserError as error:
            said = str(error)
        except FileNotFoundError:
            said = "" if name == "a file" else "no UserError\n"
        assert "\n" not in said


def test_folders_without_end(reached_at: Callable[..., str]) -> None:
    """Oracle: a page that names a folder below itself, whatever page is asked for."""
    host = reached_at(200, b'<a href="below/">below</a>')
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)  # so that it ends soon
    try:
        with pytest.raises(UserError, match=r"cannot be read \(its folders go on without end\)"):
            list(pictures(f"http://{host}/images"))
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("ftp:///x", "'host'"),
        ("dir://x/y", "NoneType"),
        ("generic://x/y", "'path'"),
        ("jupyter://x/y", "'url'"),
        ("tar://x::{file}", "header|Not a directory"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_url_that_its_client_cannot_take(place: str, message: str, tmp_path: Path) -> None:
    """Oracle: fsspec's own word for each, in one line."""
    (tmp_path / "a").write_bytes(b"no archive" * 100)
    for name, read in READS.items():
        with pytest.raises(UserError, match=message) as said:
            read(place.format(file=f"file://{tmp_path}/a"))
        assert "\n" not in str(said.value), name


def test_mistakes_of_our_own_are_not_a_places() -> None:
    """Oracle: an exception raised in this package's code, and one raised in a client's, both within a request."""
    with pytest.raises(AttributeError):
        patiently(lambda: nearest(3, []), "x")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="make sense of it: KeyError"):
        patiently(lambda: fsspec.get_filesystem_class("memory")().store[object], "x")


def test_a_client_that_was_never_made_says_nothing_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: fsspec's FTP client without a host fails again where Python clears it away; anything else's end is still told."""
    told: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: told.append(found.object))
    monkeypatch.setattr(logging.getLogger("asyncio"), "level", logging.NOTSET)
    hush_clients()
    with pytest.raises(OSError, match="host"):
        open_place("ftp:///x")
    gc.collect()
    assert told == []

    class Failing:
        def __del__(self) -> None:
            raise ValueError

    Failing()
    gc.collect()
    assert told == [Failing.__del__]


def test_a_hub_that_is_another_server(reached_at: Callable[..., str]) -> None:
    """Oracle: as for places, of a model that is named by its id on the hub."""
    reached_at(200, b"[1]")
    with pytest.raises(UserError, match="'owner/name' is no folder here and the hub can't be reached") as said:
        locate_pipeline("owner/name")
    assert "\n" not in str(said.value)
