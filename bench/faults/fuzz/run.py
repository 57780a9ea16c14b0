"""A case's command in this process: what it says, how long it takes, what it does to the files, and what of that is wrong."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from bench.faults.fuzz.bases import INTERRUPTED_AT
from bench.faults.fuzz.case import Case
from fewshot_ray.cli import main as command_line
from fewshot_ray.cli.main import NO_RESULT
from fewshot_ray.cluster.actors import trial_results
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.search.job import Job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.opened import Opened
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.spec.document import parse_document

LIMIT_SEC = 8.0
"""Of this process's computing: a valid input of any kind takes less than one."""
WAIT_SEC = 60.0
"""By the clock: nothing waits for so long, however busy the machine."""
FIELD = re.compile(
    r"\b(name|seed|source|target|method|train|evaluate|search|resources|storage)\.[a-z_]+|--[a-z]+|\bstorage\b|\bimages [^ ]+: |MODEL: "
)


class TooLongError(BaseException):
    """A case's time is up. No library's `except Exception` may hold it."""


@dataclass
class Answer:
    """What the command said."""

    code: int | None
    out: str
    err: str
    exception: str
    seconds: float
    """Of computing."""


def first_jobs(opened: Opened, **_options: object) -> None:
    """In `run_sweep`'s place, without Ray.

    Reads the folder as the driver does, hands out two jobs, and goes on with what was interrupted as a worker does.
    """
    with Progress(opened.file.train.steps, console=Console(file=io.StringIO())) as progress:
        sweep = Sweep(
            opened.document, opened.file, opened.folder, Journal(opened.folder.folder), progress, Boards(opened.folder), concurrent=2
        )
        for _ in range(2):
            job = sweep.next_job()
            if isinstance(job, Job) and job.id == INTERRUPTED_AT[0]:
                results = trial_results({"job": job.to_json(), "part": {"cpus": 1, "gpus": 0}, "folder": opened.folder.folder.url})
                next(results)
                results.close()
        sweep.abandon()


@contextmanager
def captured() -> Iterator[tuple[Any, Any]]:
    """Standard output and error as the process has them: libraries that hold the old streams write there too."""
    sys.stdout.flush()
    sys.stderr.flush()
    before, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
        try:
            yield out, err
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
            for number, old in enumerate(before, start=1):
                os.dup2(old, number)
                os.close(old)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raises TooLongError in the block after so many seconds of computing, or `WAIT_SEC` by the clock."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLongError

    timers = {signal.SIGALRM: (signal.ITIMER_REAL, WAIT_SEC), signal.SIGPROF: (signal.ITIMER_PROF, seconds)}
    before = {number: signal.signal(number, ring) for number in timers}
    for timer, limit in timers.values():
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


def run(case: Case) -> Answer:
    """The entry point itself, in the case's folder."""
    code, exception, before, arguments = None, "", Path.cwd(), sys.argv
    started, computed = time.monotonic(), time.process_time()
    with captured() as (out, err):
        os.chdir(case.folder)
        sys.argv = ["fewshot-ray", *case.arguments]
        try:
            # As in a process of its own, a warning is shown once in every case.
            with warnings.catch_warnings(), alarm(LIMIT_SEC):
                command_line()
        except SystemExit as end:
            code = int(end.code or 0)
        except TooLongError as error:
            exception = f"no answer in {time.process_time() - computed:.0f} s of {time.monotonic() - started:.0f} s, at {_where(error)}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever it is, it is the finding
            exception = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} at {_where(error)}"
        finally:
            os.chdir(before)
            sys.argv = arguments
        sys.stdout.flush()
        sys.stderr.flush()
        out.seek(0), err.seek(0)
        return Answer(code, out.read().decode(), err.read().decode(), exception, time.process_time() - computed)


def _where(error: BaseException) -> str:
    """The innermost line of ours, and the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "fewshot_ray/" in frame.filename] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


Contents = dict[str, tuple[str, bytes]]


def contents(folder: Path) -> Contents:
    """Every entry below, and what it holds: a file's hash and bytes where they are few, a link's target."""
    found: Contents = {}
    for above, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(above, name)
            key = str(path.relative_to(folder))
            if path.is_symlink():
                found[key] = ("link", os.fsencode(os.readlink(path)))
            elif path.is_file():
                content = path.read_bytes()
                found[key] = (hashlib.sha256(content).hexdigest(), content if len(content) < 100_000 else b"")
            else:
                found[key] = ("folder" if path.is_dir() else "other", b"")
    return found


def changes(case: Case, before: Contents, after: Contents, *, refused: bool) -> Iterator[str]:
    """What happened to files that are not the command's to change."""

    def matches(name: str, patterns: tuple[str, ...]) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    for name, (digest, content) in before.items():
        if matches(name, case.owned):
            continue
        if name not in after:
            yield f"{name} was removed"
        elif after[name][0] != digest:
            whole = content[: content.rfind(b"\n") + 1]
            appended = matches(name, case.appended) and after[name][1].startswith(whole)
            if not appended and not _same_spec(name, content, after[name][1]):
                yield f"{name} was changed"
    for name in after.keys() - before.keys():
        if not (matches(name, case.owned) or matches(name, case.appended)) and (refused or case.arguments[0] == "check"):
            yield f"{name} was made"


def _same_spec(name: str, before: bytes, after: bytes) -> bool:
    """`resume` writes the sweep's spec anew, as YAML of its own."""
    return Path(name).name == "spec.yaml" and parse_document(before.decode(), name).tree == parse_document(after.decode(), name).tree


def judge(case: Case, answer: Answer) -> tuple[str, list[str]]:
    """The line to show, and what is wrong with the answer."""
    if answer.code is None:
        return answer.exception, ["too long" if answer.exception.startswith("no answer") else "an exception came out"]
    problems = []
    if "Traceback (most recent call last)" in answer.err + answer.out:
        problems.append("a traceback")
    # The two jobs of `first_jobs` are no sweep's end: there is nothing to export yet, and a line says so.
    unfinished = case.arguments[0] == "resume" and answer.code == NO_RESULT
    if answer.code not in (0, 2) and not unfinished:
        problems.append(f"exit code {answer.code}")
    if answer.code == 2 or unfinished:
        if not re.fullmatch(r"(error: [^\n\r\v\f\x1b\x85\u2028\u2029]+\n)+", answer.err):
            problems.append("not a line an error on standard error")
        elif not unfinished and not all(any(name in line for name in case.names) or FIELD.search(line) for line in answer.err.splitlines()):
            problems.append("neither file nor field is named")
    if answer.seconds > LIMIT_SEC:
        problems.append("too long")
    return answer.err.strip(), problems + list(_untold(case, answer))


def _untold(case: Case, answer: Answer) -> Iterator[str]:
    """What should have been said, refused or accepted, and wasn't."""
    if case.must is not None and (answer.code == 2) != (case.must == "refuse"):
        yield "accepted" if case.must == "refuse" else "refused"
    said = "".join((answer.out + answer.err).split())
    for text in case.shown:
        if "".join(text.split()) not in said:
            yield f"{text!r} isn't said"
    if case.pictures is not None and answer.code == 0:
        passed = re.findall(r"target\.images: passed over: (.*)", answer.out)
        read = int(re.findall(r"(\d+) different ones", answer.out)[0])
        # "3 text (a.txt, b.txt, c.txt)": a kind's number stands before its words, which no name in the cases looks like.
        counted = sum(int(number) for number in re.findall(r"(?:^|, )(\d+) [a-zP]", passed[0])) if passed else 0
        if read + counted != case.pictures:
            yield f"of {case.pictures} files {read} are read and {counted} counted as passed over"
