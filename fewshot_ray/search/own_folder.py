"""A sweep's folder as its driver sees it, who alone writes records and evaluations: each is read once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fewshot_ray.search.sweep_folder import EvaluationRow, SweepFolder, TrialRecord, by_number, row_line
from fewshot_ray.storage import Folder

AT_ONCE = 16
"""Records of a remote folder that are read at the same time."""


class OwnFolder(SweepFolder):
    """Keeps records, and the evaluations of trials that haven't ended, in memory; the folder's lease must be held."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder)
        self._records: dict[str, TrialRecord | None] = {}
        self._kept: dict[str, list[bytes]] = {}
        """The lines of `metrics.jsonl` of trials that haven't ended."""
        self._is_listed = False
        self._found: set[str] = set()
        """The trials that were there when they were listed, or were evaluated since; there is nothing to be read of others."""

    def trials(self) -> list[TrialRecord]:
        """As in `SweepFolder`; the folder is listed the first time alone."""
        if not self._is_listed:
            self._found = set((self.folder / "trials").names())
            with ThreadPoolExecutor(1 if self.folder.local is not None else AT_ONCE) as pool:
                list(pool.map(self.record, self._found))
            self._is_listed = True
        return sorted((record for record in self._records.values() if record is not None), key=by_number)

    def record(self, trial_id: str) -> TrialRecord | None:
        """As in `SweepFolder`."""
        if trial_id not in self._records:
            self._records[trial_id] = None if self._is_new(trial_id) else super().record(trial_id)
        return self._records[trial_id]

    def write_trial(self, record: TrialRecord) -> None:
        """As in `SweepFolder`; the evaluations of a trial that has ended are no longer kept in memory."""
        super().write_trial(record)
        self._records[record.id] = record
        if record.state != "RUNNING":
            self._kept.pop(record.id, None)

    def _lines(self, trial_id: str) -> list[bytes]:
        if trial_id in self._kept:
            return list(self._kept[trial_id])
        lines = [] if self._is_new(trial_id) else super()._lines(trial_id)
        record = self.record(trial_id)
        if record is None or record.state == "RUNNING":
            self._kept[trial_id] = list(lines)
        return lines

    def _is_new(self, trial_id: str) -> bool:
        return self._is_listed and trial_id not in self._found

    def append_row(self, trial_id: str, row: EvaluationRow) -> None:
        """As in `SweepFolder`; the file isn't read for it."""
        lines = self._lines(trial_id)
        super().append_row(trial_id, row)
        self._kept[trial_id] = [*lines, row_line(row)]
        self._found.add(trial_id)
