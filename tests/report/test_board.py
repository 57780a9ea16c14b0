"""A remote sweep's events: on their way there, in the mirror, and in a TensorBoard that is looked at."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import psutil
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fewshot_ray.cli.board import show_board
from fewshot_ray.errors import UserError
from fewshot_ray.report import board, tensorboard
from fewshot_ray.report.board import Mirror
from fewshot_ray.report.tensorboard import EVENTS, Boards
from fewshot_ray.search.job import Job
from fewshot_ray.search.opened import put_on_record
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder
from fewshot_ray.storage import Folder
from tests.faulty_proxy import FORBIDDEN, KEYS, Fault, FaultyProxy, s3_server
from tests.report.conftest import png
from tests.search.synthetic import evaluations, file, open_sweep


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where the store keeps its files."""
    folder = Path(tempfile.mkdtemp(prefix="fewshot-ray-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def running(place: Path) -> Iterator[FaultyProxy]:
    """The proxy before the store."""
    clients = fsspec.get_filesystem_class("s3")
    with pytest.MonkeyPatch.context() as patch, s3_server(place) as port, FaultyProxy(port) as proxy:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        patch.setenv("AWS_ACCESS_KEY_ID", KEYS[0])
        patch.setenv("AWS_SECRET_ACCESS_KEY", KEYS[1])
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        clients.clear_instance_cache()
        yield proxy
    clients.clear_instance_cache()


@pytest.fixture
def proxy(running: FaultyProxy) -> Iterator[FaultyProxy]:
    yield running
    running.chances.clear()
    running.faults.clear()


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def folder(proxy: FaultyProxy) -> Folder:
    return Folder(f"s3://bucket/{uuid4().hex}")


def begin(folder: Folder, *, trials: int = 2) -> tuple[Sweep, list[Job]]:
    """A sweep in that folder, and its trials that run."""
    sweep = open_sweep(folder, file(search={"trials": trials}), concurrent=trials)
    jobs = [job for _ in range(trials) if isinstance(job := sweep.next_job(), Job)]
    assert len(jobs) == trials
    return sweep, jobs


def evaluate(sweep: Sweep, job: Job, row: EvaluationRow) -> None:
    """As a worker does it: the grid, then the report."""
    sweep.folder.write_grid(job.id, row.step, png(row.step))
    sweep.evaluated(job.id, row)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"images": 0}).Reload()


def steps(folder: Path) -> list[int]:
    """Of the curve that TensorBoard shows."""
    if not folder.exists():
        return []
    events = read(folder)
    return [event.step for event in events.Scalars("holdout_loss")] if "holdout_loss" in events.Tags()["scalars"] else []


def until(condition: Callable[[], bool], seconds: float) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.2)
    return time.monotonic() - began


def event_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("events", "mirror")]


def test_an_evaluation_shows_within_half_a_minute(folder: Folder, scratch: Path) -> None:
    """Oracle: TensorBoard's reader over the mirror, while sweep and board are open; 5 s are left for TensorBoard's own interval."""
    sweep, jobs = begin(folder)
    with Mirror(folder) as mirror:
        for count, row in enumerate(list(evaluations(jobs[0]))[:2], start=1):
            for job in jobs:
                evaluate(sweep, job, row)
            # The second comes right after an upload: the longest way there is.
            until(lambda count=count: all(len(steps(mirror.trials / job.id)) == count for job in jobs), 25)  # type: ignore[misc]
        pictures = [[event.step for event in read(mirror.trials / job.id).Images("samples")] for job in jobs]
        assert pictures == [[2, 4], [2, 4]]
        tags = [read(mirror.trials / job.id).Tags() for job in jobs]
        assert tags[0] == tags[1]
    sweep.abandon()
    assert not event_threads()
    assert not list(scratch.glob("fewshot-ray-events-*")) + list(scratch.glob("fewshot-ray-board-*"))


@pytest.mark.parametrize("clock_sec", [0.0, -4000.0])
def test_a_resumed_sweep_goes_on_with_its_curves(folder: Folder, scratch: Path, clock_sec: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the steps on record, once each, with the second driver's clock right or behind; one board stays open over it."""
    sweep, (job, _) = begin(folder)
    rows = list(evaluations(job))
    for row in rows[:2]:
        evaluate(sweep, job, row)
    sweep.abandon()
    before = folder_names(folder, job)
    # What a kill may leave: a point of an evaluation that isn't on record.
    content = (folder / "trials" / job.id).read_bytes(before[0])
    mirror = Mirror(folder)
    mirror.refresh()
    open_board = read(mirror.trials / job.id)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + clock_sec)
    resumed, (job, _) = begin(folder)
    for row in rows[2:]:
        evaluate(resumed, job, row)
    resumed.ended(job.id)
    resumed.abandon()
    assert (folder / "trials" / job.id).read_bytes(before[0]) == content
    assert len(folder_names(folder, job)) == 2
    mirror.refresh()
    for events in (open_board.Reload(), read(mirror.trials / job.id)):
        on_record = [(row.step, pytest.approx(row.metrics["holdout_loss"])) for row in resumed.folder.rows(job.id)]
        assert [(event.step, event.value) for event in events.Scalars("holdout_loss")] == on_record
        assert [event.step for event in events.Images("samples")] == [row.step for row in rows]
    shutil.rmtree(mirror.folder)


def folder_names(folder: Folder, job: Job) -> list[str]:
    return [name for name in (folder / "trials" / job.id).names() if name.startswith(EVENTS)]


def test_a_store_that_refuses_events_ends_nothing(
    folder: Folder, proxy: FaultyProxy, scratch: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: all trials complete, one line, nothing left on this disk."""
    monkeypatch.setattr(tensorboard, "UPLOAD_SEC", 0.1)
    proxy.chances = {Fault(**{**vars(FORBIDDEN), "method": "PUT", "path": "tfevents"}): 1.0}
    with caplog.at_level(logging.WARNING, "fewshot_ray.report.tensorboard"):
        sweep, jobs = begin(folder)
        for job in jobs:
            for row in evaluations(job):
                evaluate(sweep, job, row)
            sweep.ended(job.id)
        sweep.abandon()
    assert [record.state for record in sweep.folder.trials()] == ["COMPLETE", "COMPLETE"]
    (said,) = caplog.messages
    assert "AccessDenied" in said
    assert "\n" not in said
    assert not list(scratch.glob("fewshot-ray-events-*"))
    assert not event_threads()


def test_a_store_that_is_silent_holds_nothing_up(
    folder: Folder, proxy: FaultyProxy, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: the clock. No answer to any upload of events for 20 s; evaluations go on, and the end waits no longer than END_SEC."""
    monkeypatch.setattr(tensorboard, "END_SEC", 1.0)
    sweep, jobs = begin(folder)
    until(lambda: bool(folder_names(folder, jobs[1])), 30)
    proxy.chances = {Fault("silence", method="PUT", path="tfevents", seconds=20): 1.0}
    began = time.monotonic()
    for row in evaluations(jobs[0]):
        evaluate(sweep, jobs[0], row)
    sweep.ended(jobs[0].id)
    assert time.monotonic() - began < 15
    began = time.monotonic()
    sweep.abandon()
    assert time.monotonic() - began < 12
    assert not list(scratch.glob("fewshot-ray-events-*"))
    proxy.chances = {}
    until(lambda: not event_threads(), 60)


def test_what_an_outage_kept_back_comes_after_it(folder: Folder, proxy: FaultyProxy, scratch: Path) -> None:
    """Oracle: TensorBoard's reader, after uploads were refused for a while."""
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard, "UPLOAD_SEC", 0.5)
        proxy.chances = {Fault(**{**vars(FORBIDDEN), "method": "PUT", "path": "tfevents"}): 1.0}
        sweep, jobs = begin(folder)
        evaluate(sweep, jobs[0], next(evaluations(jobs[0])))
        time.sleep(2)
        assert not folder_names(folder, jobs[0])
        proxy.chances = {}
        until(lambda: bool(folder_names(folder, jobs[0])), 10)
    mirror = Mirror(folder)
    mirror.refresh()
    assert steps(mirror.trials / jobs[0].id) == [2]
    sweep.abandon()
    shutil.rmtree(mirror.folder)


def test_hundreds_of_trials_leave_nothing_behind(scratch: Path) -> None:
    """Oracle: threads, files and open descriptors after 300 trials, two at a time."""
    boards = Boards(SweepFolder(Folder(f"memory://{uuid4().hex}")))
    process = psutil.Process()
    before = process.num_fds()
    row = EvaluationRow(2, 1.7e9, {"holdout_loss": 0.5}, 0.5, 1e-3, 40.0, 1.0)
    for number in range(300):
        boards.begin(f"t{number:04d}", {"train.lr": 1e-3})
        boards.show(f"t{number:04d}", row)
        if number % 2:
            boards.end(f"t{number - 1:04d}")
            boards.end(f"t{number:04d}")
    assert len(event_threads()) == 1
    (made,) = scratch.iterdir()
    uploaded = boards.sweep.folder / "trials"
    until(lambda: len(uploaded.names()) == 300 and not list(made.iterdir()), 30)
    assert process.num_fds() <= before
    boards.close()
    assert not event_threads()
    assert not list(scratch.iterdir())


def test_the_mirror_follows(folder: Folder, proxy: FaultyProxy, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: what was put in the store, byte for byte, and a reader that keeps its file open."""
    monkeypatch.setattr(board, "PART_BYTES", 1000)
    store: dict[str, bytes] = {}
    mirror = Mirror(folder)

    def put(name: str, content: bytes) -> None:
        (folder / "trials").write_bytes(name, content)
        if EVENTS in name:
            store[name] = content

    def same() -> bool:
        return store == {str(path.relative_to(mirror.trials)): path.read_bytes() for path in mirror.trials.rglob("*") if path.is_file()}

    for number in range(30):
        for name in (f"{EVENTS}1", "trial.json", "samples/step_000002.png"):
            put(f"t{number:04d}/{name}", os.urandom(2500))
    mirror.refresh()
    assert same()
    proxy.requests.clear()
    mirror.refresh()
    assert [method for method, _, _ in proxy.requests] == ["GET"]  # the listing
    longer, shorter, gone = (f"t000{number}/{EVENTS}1" for number in range(3))
    with open(mirror.trials / longer, "rb") as reader:
        reader.seek(0, os.SEEK_END)
        put(longer, store[longer] + b"grown" * 300)
        put(shorter, os.urandom(1200))
        put(f"t0003/{EVENTS}2", b"resumed")
        (folder / "trials" / "t0002").remove()
        del store[gone]
        mirror.refresh()
        assert reader.read() == b"grown" * 300
    assert same()
    # One that can't be read doesn't keep the others back, and is there at the next look.
    for name in (longer, shorter):
        put(name, store[name] + b"more")
    proxy.chances = {Fault(**{**vars(FORBIDDEN), "path": longer}): 1.0}
    with pytest.raises(PermissionError):
        mirror.refresh()
    assert (mirror.trials / shorter).read_bytes() == store[shorter]
    assert not same()
    proxy.chances = {}
    mirror.refresh()
    assert same()
    shutil.rmtree(mirror.folder)


def test_a_mirror_says_once_that_the_store_is_away(
    folder: Folder, proxy: FaultyProxy, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: two lines over an outage of many looks, and what was copied stays."""
    monkeypatch.setattr(board, "REFRESH_SEC", 0.1)
    (folder / "trials" / "t0000").write_bytes(f"{EVENTS}1", b"content")
    said: list[str] = []
    with Mirror(folder, said.append) as mirror:
        assert mirror.wait(10)
        with proxy.outage(2):
            time.sleep(1.5)
            assert len(said) == 1
            assert (mirror.trials / "t0000" / f"{EVENTS}1").read_bytes() == b"content"
        until(lambda: len(said) == 2, 10)
    assert "can't be read" in said[0]
    assert "read again" in said[1]
    assert not event_threads()
    assert not list(scratch.iterdir())


def ask(url: str) -> Any:
    """What TensorBoard answers; nothing where it doesn't know the tag yet."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)
    except urllib.error.HTTPError:
        return []


def test_tensorboard_shows_a_remote_sweep_until_ctrl_c(folder: Folder, scratch: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Oracle: TensorBoard's own answers over HTTP, then what is left of its processes and files."""
    sweep, jobs = begin(folder)
    put_on_record_of(sweep)
    rows = list(evaluations(jobs[0]))
    for job in jobs:
        evaluate(sweep, job, rows[0])
    temporary = tmp_path_factory.mktemp("board")
    command = (
        "import sys; from rich.console import Console; from fewshot_ray.cli.board import show_board; "
        f"code = show_board({folder.url!r}, port=0, console=Console(width=200)); "
        "sys.exit(code or 'torch' in sys.modules or 'ray' in sys.modules)"
    )
    process = subprocess.Popen(
        [sys.executable, "-uc", command], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)}
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
        runs = {job.id for job in jobs}
        until(lambda: set(ask(f"{url}data/runs")) == runs, 30)
        for job in jobs:
            evaluate(sweep, job, rows[1])
        pages = [f"{url}data/plugin/images/images?run={job.id}&tag=samples&sample=0" for job in jobs]
        until(lambda: all([picture["step"] for picture in ask(page)] == [2, 4] for page in pages), 30)
        curve = ask(f"{url}data/plugin/scalars/scalars?run={jobs[0].id}&tag=holdout_loss")
        assert [step for _, step, _ in curve] == [2, 4]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert not psutil.wait_procs(children, timeout=5)[1]
    finally:
        process.kill()
        process.wait()
        sweep.abandon()
    assert not list(temporary.glob("fewshot-ray-*"))


def put_on_record_of(sweep: Sweep) -> None:
    from fewshot_ray.search.opened import Opened

    put_on_record(Opened(sweep.document, sweep.file, sweep.folder))


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Oracle: one line with the remedy, before TensorBoard is started."""
    sweep = open_sweep(Folder(tmp_path), file())
    put_on_record_of(sweep)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port {port}: .*\(Address already in use\); another one is right") as caught:
            show_board(str(tmp_path), port=port, console=Console())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no sweep there"):
        show_board(str(tmp_path / "nothing"), console=Console())
