"""Whether a sweep is given up, since its trials fail whatever their values are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fewshot_ray.search.sweep_folder import TrialRecord

MORE_FAILURES = 3
"""Trials of the sampler that fail like preset and plain fine-tuning before the sweep is given up."""


def failing_alike(records: Sequence[TrialRecord], *, references: int, trials: int) -> str | None:
    """Why no trial will succeed: all of the search's first ones failed with the same error. None where that can't be said.

    `records`: those of the sweep; `references`: number of trials before the sampler's (preset and plain fine-tuning); `trials`: number of
    the search's trials. Numbers in an error, of a step say, don't tell two errors apart.
    """
    searched = [record for record in records if record.kind == "search"]
    failed = [record for record in searched if record.state == "FAIL"]
    if not references + MORE_FAILURES <= len(failed) < trials or any(record.state in ("COMPLETE", "PRUNED") for record in searched):
        return None
    if len({re.sub(r"\d[\d.e+-]*", "#", record.error or "") for record in failed}) > 1:
        return None
    return f"all of the first {len(failed)} trials failed alike ({failed[0].error})"
