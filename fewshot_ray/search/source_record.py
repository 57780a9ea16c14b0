"""The source model as it is, on record in a sweep's folder: measured once, and never one of the trials that are ranked."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fewshot_ray.search.sweep_folder import ROWS, SOURCE, EvaluationRow, SweepFolder, TrialRecord, row_line
from fewshot_ray.spec.sections import FileSpec

LABEL = "the source model, untrained"


def put_source_on_record(folder: SweepFolder, file: FileSpec, measured: Mapping[str, Any], *, started_sec: float) -> EvaluationRow:
    """Write the record and the evaluation of the source; returns the evaluation.

    `measured`: `metrics`, `image_losses` and `by_image` as in an evaluation; `started_sec`: when measuring began, in seconds since 1970.
    """
    now_sec = time.time()
    row = EvaluationRow(0, now_sec, train_loss=math.nan, lr=0.0, images_per_sec=0.0, trained_share=0.0, **measured)
    folder.trial(SOURCE).write_bytes(ROWS, row_line(row))
    started, ended = (datetime.fromtimestamp(sec, UTC).isoformat(timespec="milliseconds") for sec in (started_sec, now_sec))
    folder.write_trial(
        TrialRecord(
            SOURCE, None, "source", SOURCE, LABEL, file.seed, "COMPLETE", best_step=0, values=row.metrics, started=started, ended=ended
        )
    )
    return row


def source_row(folder: SweepFolder) -> EvaluationRow | None:
    """The evaluation of the source on record; None where there is none."""
    record = folder.record(SOURCE)
    rows = [] if record is None or record.kind != "source" else folder.rows(SOURCE)
    return rows[0] if rows else None
