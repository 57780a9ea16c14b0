"""Writes a sweep's curves, sample grids and hyperparameters as TensorBoard events, in each trial's folder."""

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
from fewshot_ray.search.source_record import source_row
from fewshot_ray.search.sweep_folder import SOURCE, EvaluationRow, SweepFolder
from fewshot_ray.spec.sections.evaluate import BAND_METRICS
from fewshot_ray.storage import Folder, writing

logger = logging.getLogger(__name__)

EVENTS = "events.out.tfevents."
"""Prefix of event files' names."""
UPLOAD_SEC = 10.0
"""Minimum time between two uploads of a running trial's events."""
END_SEC = 15.0
"""Maximum time that a sweep's end waits for the last uploads."""


class TrialBoard:
    """A context manager that writes the TensorBoard events of one trial.

    What a method writes is in the file `path` when it returns. `tensorboard --logdir <sweep>/trials` then shows a run per trial, and
    compares them in its HParams tab.
    """

    def __init__(
        self, folder: Path, params: Mapping[str, float | str], *, earlier: Iterable[str] = (), last_step: int | None = None
    ) -> None:
        """`earlier`: names of the trial's event files that aren't in `folder`.

        `last_step`: the last valid evaluation of a resumed trial; TensorBoard drops what earlier writers wrote after it, with None
        everything they wrote.
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
        """Write an evaluation at its step: the metrics, those by noise level below `bands/`, and below `train/` what else a row holds."""
        metrics = {f"bands/{name}" if name in BAND_METRICS else name: value for name, value in row.metrics.items()}
        train = {
            "train/loss": row.train_loss,
            "train/lr": row.lr,
            "train/images_per_sec": row.images_per_sec,
            "train/trained_share": row.trained_share,
        }
        values = metrics if row.step == 0 else {**metrics, **train}  # at step 0 nothing is trained
        self._add([{"tag": name, "simple_value": value} for name, value in values.items()], row.step, row.time)

    def add_grid(self, step: int, png: bytes, *, name: str = "samples", time_sec: float | None = None) -> None:
        """Write the sample grid or another PNG at `step`, with the current time or `time_sec` (since 1970)."""
        from PIL import Image

        with Image.open(io.BytesIO(png)) as picture:
            width, height = picture.size
        image = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": png}
        self._add([{"tag": name, "image": image}], step, time_sec)

    def close(self, *, ended: bool = True) -> None:
        """Close the file; with `ended` the HParams tab shows the trial as finished."""
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
    """A name for the file after all earlier ones, since TensorBoard reads a trial's files in the order of names; the clock may be wrong."""
    stamps = [int(found[1]) + 1 for name in earlier if (found := re.match(rf"{re.escape(EVENTS)}(\d+)\.", name))]
    return f"{EVENTS}{max([int(time.time()), *stamps]):010d}.{socket.gethostname()}.{os.getpid()}.0"


class Boards:
    """The TensorBoard events of a sweep's running trials.

    A remote sweep's are written to the local disk and uploaded by a thread, so that nothing else waits for the storage; its errors are
    logged.
    """

    def __init__(self, sweep: SweepFolder) -> None:
        self.sweep = sweep
        self._open: dict[str, TrialBoard] = {}
        self._shows_source = False
        """Whether the source was looked for."""
        self._source: tuple[EvaluationRow, Mapping[str, bytes]] | None = None
        """Its evaluation and pictures."""
        self._uploads = _Uploads() if sweep.folder.local is None else None

    def begin(self, trial_id: str, params: Mapping[str, float | str], rows: Iterable[EvaluationRow] = ()) -> None:
        """A trial starts, or continues after `rows`, which are written again, since a kill may have lost the last events.

        Its curves and samples begin at step 0 with the source model's, where that was measured; that has a run of its own, too.
        """
        if not self._shows_source:
            self._shows_source = True
            self._do(self._show_source)
        self._do(partial(self._begin, trial_id, params))
        self._do(partial(self._begin_with_source, trial_id))
        for row in rows:
            self.show(trial_id, row)

    def show(self, trial_id: str, row: EvaluationRow) -> None:
        """Write a recorded evaluation with its pictures."""
        self._do(partial(self._show, trial_id, row))

    def end(self, trial_id: str, *, ended: bool = True) -> None:
        """The trial has ended or, with `ended` false, is left open."""
        self._do(partial(self._end, trial_id, ended))

    def close(self) -> None:
        """End of the sweep: upload the rest, for up to END_SEC."""
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

    def _show_source(self) -> None:
        """Write the source's run, if the sweep has measured it."""
        if (row := source_row(self.sweep)) is not None:
            self._source = row, self._pictures(SOURCE, 0)
            self._begin(SOURCE, {})
            self._begin_with_source(SOURCE)
            self._end(SOURCE, ended=True)

    def _begin_with_source(self, trial_id: str) -> None:
        board = self._open.get(trial_id)
        if board is not None and self._source is not None:
            self._write(board, *self._source)

    def _show(self, trial_id: str, row: EvaluationRow) -> None:
        if (board := self._open.get(trial_id)) is not None:
            self._write(board, row, self._pictures(trial_id, row.step))

    def _write(self, board: TrialBoard, row: EvaluationRow, pictures: Mapping[str, bytes]) -> None:
        board.add(row)
        for name, png in pictures.items():
            board.add_grid(row.step, png, name=name, time_sec=row.time)
        self._changed(board)

    def _pictures(self, trial_id: str, step: int) -> Mapping[str, bytes]:
        """The PNGs of an evaluation by their tags; with `evaluate.grid_images: 0` there is none."""
        try:
            grid, strip = self.sweep.grid(trial_id, step), self.sweep.strip(trial_id, step)
        except FileNotFoundError:
            return {}
        return {"samples": grid} if strip is None else {"samples": grid, "paths": strip}

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
    """A local event file and its destination; it is uploaded whole, since object stores can't append."""

    path: Path
    folder: Folder
    changed: bool = True
    ended: bool = False
    due_sec: float = 0.0
    """Earliest time of its next upload, unless it has ended."""

    def wait_sec(self) -> float:
        return 0.0 if self.ended else max(0.0, self.due_sec - time.monotonic())


class _Uploads:
    """A thread that runs tasks one after the other, and uploads those of the `files` that have changed."""

    def __init__(self) -> None:
        self.files: dict[Path, _File] = {}
        """Used by the thread only."""
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._over = threading.Event()
        self._told = False
        """Whether failing uploads have been logged."""

    def do(self, task: Callable[[], None]) -> None:
        """Queue a task."""
        if self._thread.ident is None:
            self.scratch = Path(tempfile.mkdtemp(prefix="fewshot-ray-events-"))
            self._thread.start()
        self._tasks.put(task)

    def close(self) -> None:
        """Run the remaining tasks and upload everything, for up to END_SEC."""
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
        if file.ended:  # also after a failure, so that the local disk doesn't fill up
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
