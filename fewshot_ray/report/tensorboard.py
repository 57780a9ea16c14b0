"""A trial's curves, sample grids and hyperparameters as TensorBoard events in the trial's own folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fewshot_ray.report.sweep_folder import EvaluationRow


class TrialBoard:
    """Writes the TensorBoard events of one trial; a context manager.

    `tensorboard --logdir <sweep>/trials` then shows one run a trial, and compares them in its HParams tab.
    """

    def __init__(self, folder: Path, params: Mapping[str, Any], *, last_step: int | None = None) -> None:
        """`last_step`: the last evaluation that stays when the trial goes on after an interruption.

        TensorBoard drops what an earlier writer put after it; with None, everything an earlier writer put.
        """
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder.mkdir(parents=True, exist_ok=True)
        reopened = any(folder.glob("events.out.tfevents.*"))
        purge_step = (0 if last_step is None else last_step + 1) if reopened else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        # The experiment summary names one trial's parameters, and TensorBoard would use the first it finds for all
        # trials. Without it TensorBoard gathers the union over the trials, which are of different methods here.
        _experiment, start, self._end = hparams({name: _hparam(value) for name, value in params.items()}, {})
        self._event_file().add_summary(start)

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
        for name, value in {**row.metrics, **train}.items():
            self._writer.add_scalar(name, value, global_step=row.step, walltime=row.time)
        self._writer.flush()

    def add_grid(self, step: int, png: bytes, *, name: str = "samples") -> None:
        """The sample grid, or another picture, at `step`, from a PNG's content."""
        import numpy
        from PIL import Image

        with Image.open(io.BytesIO(png)) as picture:
            pixels = numpy.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels, global_step=step, dataformats="HWC")
        self._writer.flush()

    def close(self, *, ended: bool = True) -> None:
        """Write what is left; with `ended` the trial shows as finished in the HParams tab."""
        if ended:
            self._event_file().add_summary(self._end)
        self._writer.close()

    def _event_file(self) -> Any:
        return self._writer._get_file_writer()


def _hparam(value: Any) -> float | str:
    """TensorBoard's hyperparameters are numbers and texts; a truth value stays readable as a text."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
