"""A sweep's curves, sample grids and hyperparameters as TensorBoard events, each trial's in its own folder."""

from __future__ import annotations

import io
import logging
import os
import queue
import re
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from fewshot_ray.errors import UserError
from fewshot_ray.report.sweep_folder import EvaluationRow, SweepFolder
from fewshot_ray.storage import Folder, writing

logger = logging.getLogger(__name__)

EVENTS = "events.out.tfevents."
"""What the name of every event file begins with."""
UPLOAD_SEC = 10.0
"""At the least between two uploads of a running trial's events."""
END_SEC = 15.0
"""At the most that a sweep's end waits for the last ones."""


class TrialBoard:
    """Writes the TensorBoard events of one trial; a context manager. Whatever a method writes is in the file `path` when it returns.

    `tensorboard --logdir <sweep>/trials` then shows one run a trial, and compares them in its HParams tab.
    """

    def __init__(
        self, folder: Path, params: Mapping[str, float | str], *, earlier: Iterable[str] = (), last_step: int | None = None
    ) -> None:
        """`earlier`: the trial's event files that aren't in `folder`, by name.

        `last_step`: the last evaluation that stays when the trial goes on after an interruption. TensorBoard drops what an earlier writer
        put after it; with None, everything an earlier writer put.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import hparams

        folder.mkdir(parents=True, exist_ok=True)
        names = {*earlier, *(path.name for path in folder.glob(f"{EVENTS}*"))}
        self.path = folder / _file_name(names)
        self._records = RecordWriter(open(self.path, "xb"))  # noqa: SIM115 (until `close`)
        self._write(Event(file_version="brain.Event:2"))
        if names:
            self._write(Event(session_log=SessionLog(status=SessionLog.START)), step=0 if last_step is None else last_step + 1)
        # The experiment summary names one trial's parameters, and TensorBoard would use the first it finds for all
        # trials. Without it TensorBoard gathers the union over the trials, which are of different methods here.
        _experiment, start, self._end = hparams(dict(params), {})
        self._write(Event(summary=start))
        self._records.flush()

    def __enter__(self) -> TrialBoard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(ended=kind is None)

    def add(self, row: EvaluationRow) -> None:
        """The evaluation's metrics, and below `train/` the loss, learning rate, pace and share trained, all at the trial's own step."""
        train = {
            "train/loss": row.train_loss,
            "train/lr": row.lr,
            "train/images_per_sec": row.images_per_sec,
            "train/trained_share": row.trained_share,
        }
        self._add([{"tag": name, "simple_value": value} for name, value in {**row.metrics, **train}.items()], row.step, row.time)

    def add_grid(self, step: int, png: bytes, *, name: str = "samples", time_sec: float | None = None) -> None:
        """The sample grid, or another picture, at `step`, from a PNG's content; of now, or of `time_sec` since 1970."""
        from PIL import Image

        with Image.open(io.BytesIO(png)) as picture:
            width, height = picture.size
        image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": png}
        self._add([{"tag": name, "image": image}], step, time_sec)

    def close(self, *, ended: bool = True) -> None:
        """End the file; with `ended` the trial shows as finished in the HParams tab."""
        from tensorboard.compat.proto.event_pb2 import Event

        if self._records.closed:
            return
        if ended:
            self._write(Event(summary=self._end))
        self._records.close()

    def _add(self, values: list[dict[str, Any]], step: int, time_sec: float | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._write(Event(summary=Summary(value=[Summary.Value(**value) for value in values])), step, time_sec)
        self._records.flush()

    def _write(self, event: Any, step: int = 0, time_sec: float | None = None) -> None:
        event.step, event.wall_time = step, time.time() if time_sec is None else time_sec
        self._records.write(event.SerializeToString())


def _file_name(earlier: Iterable[str]) -> str:
    """TensorBoard reads a trial's event files in the order of their names: this one's is the last, whatever the clock says."""
    stamps = [int(found[1]) + 1 for name in earlier if (found := re.match(rf"{re.escape(EVENTS)}(\d+)\.", name))]
    return f"{EVENTS}{max([int(time.time()), *stamps]):010d}.{socket.gethostname()}.{os.getpid()}.0"


class Boards:
    """The boards of a sweep's running trials.

    A remote sweep's are written on this machine's disk and uploaded by a thread, which alone waits for the storage; what goes wrong there
    is logged, and ends nothing.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self.sweep = sweep
        self._open: dict[str, TrialBoard] = {}
        self._uploads = _Uploads() if sweep.folder.local is None else None

    def begin(self, trial_id: str, params: Mapping[str, float | str], rows: Iterable[EvaluationRow] = ()) -> None:
        """A trial begins, or goes on after `rows`: they are written anew, as a kill may have come between a row and its point."""
        self._do(partial(self._begin, trial_id, params))
        for row in rows:
            self.show(trial_id, row)

    def show(self, trial_id: str, row: EvaluationRow) -> None:
        """An evaluation that is on record, with its pictures."""
        self._do(partial(self._show, trial_id, row))

    def end(self, trial_id: str, *, ended: bool = True) -> None:
        """The trial has ended, or with `ended` false was left where it is."""
        self._do(partial(self._end, trial_id, ended))

    def close(self) -> None:
        """The sweep ends: what isn't uploaded yet has END_SEC for it."""
        if self._uploads is not None:
            self._uploads.close()

    def _do(self, task: Callable[[], None]) -> None:
        if self._uploads is None:
            with writing(self.sweep.folder.url):
                task()
        else:
            self._uploads.do(task)

    def _begin(self, trial_id: str, params: Mapping[str, float | str]) -> None:
        trial = self.sweep.trial(trial_id)
        if self._uploads is None:
            self._open[trial_id] = TrialBoard(Path(trial.url), params)
            return
        self._open[trial_id] = board = TrialBoard(self._uploads.scratch / trial_id, params, earlier=_event_files(trial.names()))
        self._uploads.files[board.path] = _File(board.path, trial)

    def _show(self, trial_id: str, row: EvaluationRow) -> None:
        board = self._open.get(trial_id)
        if board is None:
            return
        board.add(row)
        self._changed(board)
        # With `evaluate.grid_images: 0` there is none.
        with suppress(FileNotFoundError):
            board.add_grid(row.step, self.sweep.grid(trial_id, row.step), time_sec=row.time)
            strip = self.sweep.strip(trial_id, row.step)
            if strip is not None:
                board.add_grid(row.step, strip, name="paths", time_sec=row.time)

    def _end(self, trial_id: str, ended: bool) -> None:
        board = self._open.pop(trial_id, None)
        if board is not None:
            board.close(ended=ended)
            self._changed(board, ended=True)

    def _changed(self, board: TrialBoard, *, ended: bool = False) -> None:
        if self._uploads is not None:
            file = self._uploads.files[board.path]
            file.changed, file.ended = True, ended


def _event_files(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(EVENTS)]


@dataclass
class _File:
    """An event file on this machine's disk, and where it is uploaded to: whole, as an object store can't append."""

    path: Path
    folder: Folder
    changed: bool = True
    ended: bool = False
    due_sec: float = 0.0
    """Not uploaded before, unless it has ended."""

    def wait_sec(self) -> float:
        return 0.0 if self.ended else max(0.0, self.due_sec - time.monotonic())


class _Uploads:
    """Does what it is told in a thread of its own, one after the other, and uploads the `files` that have changed."""

    def __init__(self) -> None:
        self.files: dict[Path, _File] = {}
        """Of the thread alone."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._over = threading.Event()
        self._told = False
        """Whether it was said that the uploads fail."""

    def do(self, task: Callable[[], None]) -> None:
        """Add to what is to be done."""
        if self._thread.ident is None:
            self.scratch = Path(tempfile.mkdtemp(prefix="fewshot-ray-events-"))
            self._thread.start()
        self._tasks.put(task)

    def close(self) -> None:
        """Do the rest and upload everything once more, as far as END_SEC reach."""
        if self._thread.ident is None:
            return
        self._tasks.put(None)
        try:
            self._thread.join(END_SEC)
            if self._thread.is_alive():
                logger.warning("the last TensorBoard events are not in the sweep's folder: its storage didn't take them in %.0f s", END_SEC)
        finally:
            self._over.set()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def _run(self) -> None:
        closing = False
        while not (closing or self._over.is_set()):
            with suppress(queue.Empty):
                task = self._tasks.get(timeout=min((file.wait_sec() for file in self.files.values() if file.changed), default=None))
                closing = task is None
                if task is not None:
                    self._try(task)
            for file in [file for file in self.files.values() if file.changed and (closing or not file.wait_sec())]:
                if not self._over.is_set():
                    self._upload(file)

    def _upload(self, file: _File) -> None:
        uploaded = self._try(lambda: file.folder.write_bytes(file.path.name, file.path.read_bytes()))
        file.changed, file.due_sec = not uploaded, time.monotonic() + UPLOAD_SEC
        self._told = self._told and not uploaded
        if file.ended:  # also where it failed: a storage that refuses should not fill this disk
            del self.files[file.path]
            shutil.rmtree(file.path.parent, ignore_errors=True)

    def _try(self, task: Callable[[], None]) -> bool:
        try:
            task()
        except (UserError, OSError, ValueError) as error:
            if not (self._told or self._over.is_set()):
                self._told = True
                logger.warning("TensorBoard events: %s; the sweep goes on, and they are tried again", error)
            return False
        return True
