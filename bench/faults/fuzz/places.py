"""Places of other fsspec clients than S3's (HTTP, the hub, FTP, archives within places), at a server that does all that a server may do."""

from __future__ import annotations

import random
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import fsspec
import huggingface_hub.constants

from bench.faults.fuzz.bases import Bases
from bench.faults.fuzz.case import Case, at_some_place, changed, check_case
from bench.faults.fuzz.models import SAMPLE
from fewshot_ray.patience import SHORT_PATIENCE_SEC, set_patience

STATUSES = (
    *(200, 204, 206, 301, 302, 304, 400, 401, 402, 403, 404, 405, 407, 409, 410, 416, 418, 421, 429, 451),
    *(500, 501, 502, 503, 504, 507, 508),
)
BODIES = (
    *(b"", b"null", b"[]", b"{}", b"[1]", b'{"error": "[/red] no"}', b"<html><a href='x'>", b"\xff\xfe\0", b"x" * 10**6, b'"text"'),
    b"[{}]",
)
LINKS = (
    *("../../x", "//other.invalid/x", "%00.png", "javascript:x", "?C=N;O=D", "http://[::1", "a%2fb.png", "./", "../", "\u202e.png"),
    "0.png/",
)
FAULTS = (
    *("none", "none", "status", "status", "status later", "some", "cut", "body", "no length", "closed", "no protocol", "no ranges"),
    *("odd range", "gzip", "loop", "links", "redirect", "type"),
)


HUB = ("hf://datasets/owner/set/", "hf://buckets/owner/set/", "hf://owner/model/", "hf://datasets/owner/set@main/")
CHAINS = (
    *("simplecache::{http}", "filecache::{http}", "blockcache::{http}", "zip://a.png::{http}", "zip://::{http}", "tar://x::{http}"),
    *("dir::{http}", "simplecache::zip://0.png::file://{folder}/there/photos.zip", "zip://*::{http}", "cached::{http}"),
)
ODD = (
    *("ftp://{host}/{what}", "http://{host}:x/{what}", "http://127.0.0.1:1/{what}", "http://", "http://[::1/x", "http:///x", "https://"),
    *("https://{host}/{what}", "http://nowhere.invalid/{what}", "http://{host}/a b\u202e/{what}", "http://127.0.0.1:99999/x", "ftp://"),
    *("hf://", "hf://datasets", "hf://datasets/a", "hf://buckets/a", "hf://a/b@/c", "hf://spaces/a/b/c", "file://", "file://nowhere/x"),
    *("file://{folder}/there/{what}", "local://{folder}/there/{what}", "memory://", "memory://nowhere", "data:image/png;base64,AAAA"),
)
MALFORMED = (*("a://b://{what}", "://x", "x://", "http://%00/x", "HTTP://{host}/{name}/{what}", "http://user:word@{host}/{name}/{what}"),)


@dataclass
class _Remote:
    """What stands at the server in a case, and what is wrong with it."""

    folder: Path
    fault: str = "none"
    status: int = 200
    body: bytes = b""
    after: int = 0
    """Requests that are answered well before."""
    asked: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    remotes: dict[str, _Remote]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked went away: no matter."""


class _Answering(BaseHTTPRequestHandler):
    """`/CASE/...` by the case's fault; whatever else is asked, as the hub is, by the latest case's."""

    server: _Server

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/", 1)
        remote = self.server.remotes.get(parts[0]) or next(reversed(self.server.remotes.values()))
        remote.asked += 1
        of_ours = parts[0] in self.server.remotes
        path = remote.folder / parts[1] if of_ours and len(parts) > 1 else remote.folder
        fault = remote.fault if remote.asked > remote.after else "none"
        if fault == "closed":
            self.close_connection = True
        elif fault == "no protocol":
            self.wfile.write(b"hello\r\n\r\n")
        elif fault in ("status", "status later") or (fault == "some" and remote.asked % 3 == 0):
            self._answer(remote.status, remote.body)
        elif fault in ("redirect", "loop"):
            where = self.path if fault == "loop" else ("//other.invalid/x", "ftp://x/y", "http://[", "")[remote.asked % 4]
            self._answer(302, b"", ("Location", where))
        elif fault == "body" or not of_ours:
            self._answer(200 if of_ours else remote.status, remote.body, ("Content-Type", "application/json"))
        elif path.is_dir():
            names = [f"{child.name}/" if child.is_dir() else child.name for child in sorted(path.iterdir())]
            names += LINKS if fault == "links" else ()
            page = "".join(f'<a href="{name}">{name}</a>' for name in names)
            self._answer(200, page.encode("utf-8", "replace"), ("Content-Type", "image/png" if fault == "type" else "text/html"))
        elif path.is_file():
            self._file(path.read_bytes(), fault)
        else:
            self._answer(404, b"nothing")

    do_HEAD = do_POST = do_PUT = do_DELETE = do_MKCOL = do_PROPFIND = do_GET  # noqa: N815  http.server's names

    def _file(self, content: bytes, fault: str) -> None:
        asked = self.headers.get("Range", "")
        if asked and fault not in ("no ranges", "no length"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(0, len(content) - int(last))
            end = min(len(content), int(last) + 1) if first and last else len(content)
            said = f"bytes {start}-{end - 1}/{len(content)}" if fault != "odd range" else "bytes 5-3/x"
            self._answer(206, content[start:end], ("Content-Range", said), cut=fault == "cut")
            return
        extra = [("Content-Encoding", "gzip")] if fault == "gzip" else []
        self._answer(200, content, *extra, cut=fault == "cut", length=fault != "no length")

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str], cut: bool = False, length: bool = True) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if length:
            self.send_header("Content-Length", str(len(body) + 100 * cut))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


_server: list[_Server] = []


@contextmanager
def places_of_our_own(folder: Path) -> Iterator[None]:
    """A server, which is the hub as well; no other host has an address. `folder`: for what the hub's client keeps."""
    server = _Server(("127.0.0.1", 0), _Answering)
    server.remotes = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own_look_up = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **settings: Any) -> Any:
        if host not in ("127.0.0.1", "localhost", None, b"127.0.0.1"):
            raise socket.gaierror(socket.EAI_NONAME, "no network in this bench")
        return own_look_up(host, *arguments, **settings)

    # Once a day the hub's client asks it for this list, and keeps what it says.
    (folder / "agents.json").write_text('{"harnesses": {}}')
    hub: dict[str, Any] = {"ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": False}
    hub |= {"AGENT_HARNESSES_PATH": str(folder / "agents.json"), "HF_HUB_CACHE": str(folder / "hub")}
    _server.append(server)
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    try:
        with patch.object(socket, "getaddrinfo", look_up), patch.multiple(huggingface_hub.constants, **hub):
            yield
    finally:
        set_patience(SHORT_PATIENCE_SEC)
        _server.remove(server)
        server.shutdown()
        server.server_close()


def place(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A URL as a run's images, model, storage or weights, or as a command's argument."""
    server, name = _server[-1], folder.name
    set_patience(0.2)  # a case before may have set another
    what = rng.choice(("photos", "photos", "photos.zip", "photos.parquet", "pixel", "adm.pt", "sweeps/finished"))
    here = folder / "there" / what
    here.parent.mkdir(parents=True)
    (shutil.copytree if (bases.folder / what).is_dir() else shutil.copyfile)(bases.folder / what, here)
    remote = _Remote(folder / "there", rng.choice(FAULTS), rng.choice(STATUSES), rng.choice(BODIES))
    remote.after = rng.randrange(1, 12) if remote.fault == "status later" or rng.random() < 0.15 else 0
    server.remotes = {name: remote}
    url = _url(rng, folder, f"127.0.0.1:{server.server_port}", name, what)
    case = _used(rng, bases, folder, what, url)
    case.said = f"{case.said}; {remote.fault} {remote.status} {remote.body[:12]!r} after {remote.after}"
    return case


def _url(rng: random.Random, folder: Path, host: str, name: str, what: str) -> str:
    http = f"http://{host}/{name}/{what}"
    way = rng.random()
    if way < 0.4:
        return http
    if way < 0.6:
        return rng.choice(HUB) + what
    if way < 0.68:
        memory = f"memory://{uuid4().hex}/{what}"
        filesystem, path = fsspec.core.url_to_fs(memory)
        for file in [path for path in (folder / "there").rglob("*") if path.is_file()]:
            filesystem.pipe_file(path.removesuffix(what) + str(file.relative_to(folder / "there")), file.read_bytes())
        return memory
    if way < 0.78:
        return rng.choice(CHAINS).format(http=http, folder=folder)
    protocols = [f"{name}://nowhere.invalid/{what}" for name in fsspec.available_protocols() if name not in ("s3", "s3a")]
    odd, malformed = ([url.format(host=host, name=name, what=what, folder=folder) for url in urls] for urls in (ODD, MALFORMED))
    return rng.choice([*odd, *protocols, *malformed])


def _used(rng: random.Random, bases: Bases, folder: Path, what: str, url: str) -> Case:
    """Mostly where such a thing may stand, else anywhere."""
    usual = {"pixel": "model", "adm.pt": "adm", "sweeps/finished": "sweep"}.get(what, "images")
    use = usual if rng.random() < 0.8 else rng.choice(("images", "model", "adm", "sweep", "storage", "extractor", "gan"))
    names = (url, url.rstrip("/"), "mine.yaml")
    if use == "sweep":
        command = rng.choice(("leaderboard", "export", "evaluate", "resume"))
        arguments = [command, url, *(["out"] if command == "export" else [])]
        return Case(folder, arguments, f"{command} {url}", names, owned=("out", "out/**", "there/**"))
    if use == "model" and rng.random() < 0.5:
        return Case(folder, ["sample", url, "out", *SAMPLE], f"sample {url}", names, owned=("out", "out/*"))
    if use == "images":
        tree = at_some_place(rng, bases, url)
    elif use == "adm":
        tree = changed(bases, "adm", source={"adm": {**bases.trees["adm"]["source"]["adm"], "weights": url}})
    elif use == "extractor":
        tree = changed(bases, "short", evaluate={"metrics": ["fd"], "samples": 8, "sampler_steps": 2, "extractor_weights": url})
    elif use == "gan":
        tree = changed(bases, "gan", source={"gan": {"stylegan2": {"weights": url}}})
    elif use == "storage":
        tree = {**changed(bases, "short"), "storage": url}
    else:
        tree = changed(bases, "short", source={"model": rng.choice((url, url, "owner/model"))})
    return check_case(folder, tree, f"{use} {url}", *names)
