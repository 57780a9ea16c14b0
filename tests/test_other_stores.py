"""Places of other clients than S3's, real ones against a server of the test's own: the hub (hf://), its buckets, plain HTTP and FTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec
import huggingface_hub.constants
import pytest

from fewshot_ray.data.places import pictures
from fewshot_ray.errors import UserError
from fewshot_ray.models.source import locate_pipeline
from fewshot_ray.models.weights import read_content
from fewshot_ray.patience import set_patience
from fewshot_ray.storage import Folder

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
    """The server's `status` to whatever is asked."""

    def answer(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815  http.server's names

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def reached_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int | None], str]]:
    """`reached_at(status)`: host and port of a server that answers all with it (None: nobody listens there), which is the hub as well."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def host(status: int | None) -> str:
        server.status = status  # type: ignore[attr-defined]
        port = server.server_port
        if status is None:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        return f"127.0.0.1:{port}"

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
def test_what_is_wrong_is_said_in_one_line(place: str, status: int | None, reached_at: Callable[[int | None], str]) -> None:
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


def test_a_file_that_is_missing(reached_at: Callable[[int | None], str]) -> None:
    """Oracle: HTTP's 404."""
    place = f"http://{reached_at(404)}/images"
    assert not Folder(place).exists("a")
    assert Folder(place).names() == []
    with pytest.raises(FileNotFoundError):
        Folder(place).read_bytes("a")
    with pytest.raises(UserError, match="there is no such file or folder"):
        list(pictures(place))


def test_a_hub_that_is_back(reached_at: Callable[[int | None], str]) -> None:
    """Oracle: what passes by itself is waited out: a server that answers 503 at first, then that there is nothing."""
    set_patience(20)
    host = reached_at(503)
    back = threading.Timer(0.5, reached_at, [404])
    back.start()
    assert not Folder(f"http://{host}/images").exists("a")
    back.join()
