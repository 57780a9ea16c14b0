"""Warm start: what a search takes over from earlier sweeps (`search.from`).

A trial's result enters the study where all that it depends on is the same: the model, the images, the protocol of evaluation, and every
setting that isn't searched here. Of other sweeps, whose results can't be compared, the best trials' values are tried first. Of a sweep
whose results enter, the best is tried again too: its checkpoint isn't here, and what this sweep exports must be.
"""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from optuna.trial import TrialState

from fewshot_ray.errors import UserError
from fewshot_ray.search.differences import differing_paths
from fewshot_ray.search.frozen_trials import PLAIN_ORIGIN, SAMPLER, EarlierTrial, Proposal, Result
from fewshot_ray.search.inputs import compared_with
from fewshot_ray.search.jobs import search_job
from fewshot_ray.search.lease import is_driven
from fewshot_ray.search.own_folder import AT_ONCE
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import SPEC, EvaluationRow, SweepFolder, TrialRecord, check_trainable, read_spec
from fewshot_ray.spec.alternatives import label_of
from fewshot_ray.spec.document import Document, value_at
from fewshot_ray.spec.places import EARLIER, places
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.spec.space import Parameter, Space
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document, compose, effective_tree, preset_values, with_values
from fewshot_ray.trial.ranking import Ranking

TRIED_SHARE = 3
"""At most one in so many of the new trials tries an earlier trial's values."""
NOT_COMPARED: Mapping[str, Sequence[str]] = {
    "": ("name", "storage", "resources", "search"),
    "target": ("test",),
    "train": ("checkpoint_sec", "micro_batch", "compile"),
    "evaluate": ("metrics", "final_samples", "final_paths", "grid_images", "keep_samples"),
}
"""By section, the fields that no trial's value depends on, but for rounding; the metrics are compared by themselves."""


@dataclass(frozen=True)
class EarlierSweep:
    """An earlier sweep that the file names."""

    place: str
    document: Document
    file: FileSpec
    folder: SweepFolder


@dataclass(frozen=True)
class WarmStart:
    """What a search begins with."""

    known: list[tuple[EarlierTrial, Result]]
    """Trials that enter with their results."""
    to_try: list[EarlierTrial]
    """Trials whose values are tried first, in this order."""
    lines: list[str]
    """What is taken over of each sweep, in words."""


def begin_with_earlier(study: Study, document: Document, file: FileSpec, own: Folder, say: Callable[[str], None]) -> None:
    """Enter what the file's earlier sweeps give into a search that begins. Raises UserError.

    It is on record in the study from then on; a search that has begun doesn't need the earlier sweeps.
    """
    if not file.search.earlier or study.to_try is not None:
        return
    start = warm_start(document, file, earlier_sweeps(document, file, own))
    study.begin_with(start.known, start.to_try)
    for line in start.lines:
        say(line)


def earlier_sweeps(document: Document, file: FileSpec, own: Folder) -> list[EarlierSweep]:
    """The earlier sweeps that the file names. Raises UserError for one that can't be used."""
    found: dict[str, EarlierSweep] = {}
    for index, place in enumerate(file.search.earlier):
        folder, path = Folder(place), f"{EARLIER}.{index}"
        real = _real(folder)
        if real == _real(own):
            raise document.error(path, f"{place} is this sweep itself; an earlier one is right")
        if real in found:
            raise document.error(path, f"{place} is given twice; once is right")
        if not folder.exists(SPEC):
            raise document.error(path, f"{place}: no sweep there ({SPEC} is missing); a folder that `fewshot-ray run` made is right")
        found[real] = _opened(document, file, path, folder)
    return list(found.values())


def _real(folder: Folder) -> str:
    return folder.url if folder.local is None else os.path.realpath(folder.local)


def _opened(document: Document, file: FileSpec, path: str, folder: Folder) -> EarlierSweep:
    try:
        spec = read_spec(folder)
        check_trainable(folder)
        expanded, earlier = check_document(spec)
    except UserError as error:
        raise document.error(path, f"nothing can be taken over ({error})") from error
    if not file.search.objectives.keys() & set(earlier.evaluate.metrics):
        wanted = ", ".join(file.search.objectives)
        raise document.error(path, f"{folder.url} measured none of this sweep's objectives ({wanted}); a sweep that did is right")
    return EarlierSweep(folder.url, expanded, earlier, SweepFolder(folder))


def warm_start(document: Document, file: FileSpec, sweeps: Sequence[EarlierSweep]) -> WarmStart:
    """What a search takes over. Raises UserError at a damaged record."""
    parts = [_Part(document, file, sweep) for sweep in sweeps]
    known = [entry for part in parts for entry in part.known]
    complete = [(trial, result.values) for trial, result in known if result.state is TrialState.COMPLETE and result.values is not None]
    best = [complete[index][0] for index in Ranking.of(file.search).front([values for _, values in complete])]
    others = [trial for group in zip_longest(*(part.to_try for part in parts)) for trial in group if trial is not None]
    preset = preset_values(document)
    chosen = _distinct(best, [preset])
    chosen += _distinct(others, [preset, *(trial.values for trial in chosen), *(trial.values for trial, _ in known)])
    chosen = chosen[: file.search.trials // TRIED_SHARE]
    return WarmStart(known, chosen, [part.line(chosen) for part in parts])


def _distinct(trials: Sequence[EarlierTrial], others: Sequence[Mapping[str, Any]]) -> list[EarlierTrial]:
    """The trials whose values neither an earlier one nor any of the others has."""
    found = {_key(trial.values): trial for trial in reversed(trials)}
    for values in others:
        found.pop(_key(values), None)
    return [trial for trial in trials if found.get(_key(trial.values)) is trial]


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True)  # 1 and true are two values


class _Part:
    """What one earlier sweep gives."""

    def __init__(self, document: Document, file: FileSpec, sweep: EarlierSweep) -> None:
        self.sweep = sweep
        self.known: list[tuple[EarlierTrial, Result]] = []
        self.to_try: list[EarlierTrial] = []
        """Complete trials whose results can't enter, best first."""
        self.differing: dict[str, None] = {}
        """Why they can't, in the order found."""
        self.left_out: Counter[str] = Counter()
        """Number of trials that give nothing, by the reason."""
        self._document, self._file = document, file
        same, whole = _conditions(document, file, sweep)
        candidates: list[tuple[EarlierTrial, Mapping[str, float]]] = []
        for record, rows in _evaluated(sweep):
            if (found := self._take(record, rows, same, whole)) is not None:
                candidates.append(found)
        standings = Ranking(_measured(file, sweep.file)).standings([values for _, values in candidates])
        order = sorted(range(len(candidates)), key=lambda index: standings[index].place)
        self.to_try = [candidates[index][0] for index in order if standings[index].measured]

    def _take(
        self, record: TrialRecord, rows: Sequence[EvaluationRow], same: set[str], whole: Sequence[str]
    ) -> tuple[EarlierTrial, Mapping[str, float]] | None:
        """Take a trial over as known; or else return it as one to try, with the values of its best evaluation; or note why not.

        `same`: the fields whose files are the same; `whole`: what keeps all of the sweep's results from entering.
        """
        if record.state == "RUNNING":
            self.left_out["not ended"] += 1
            return None
        try:
            raw = _tree(self.sweep, record)
        except KeyError:
            self.left_out["with values that its sweep doesn't search"] += 1
            return None
        effective = effective_tree(compose(Document(raw, self.sweep.place))) | {"seed": record.seed}
        values = _values_here(self._document, record.params, raw, effective)
        if isinstance(values, str):
            self.left_out[f"{values} outside its range"] += 1
            return None
        trial = EarlierTrial(self.sweep.place, record.id, values)
        here = effective_tree(compose(with_values(self._document, values)))
        differences = [*whole, *differing_paths(_compared(effective, same), _compared(here, same))]
        if not differences:
            self.known.append((trial, _result(record, rows, Ranking.of(self._file.search))))
            return None
        self.differing |= dict.fromkeys(differences)
        best = _result(record, rows, Ranking(_measured(self._file, self.sweep.file)))
        if best.state is TrialState.COMPLETE and best.values is not None:
            return trial, best.values
        self.left_out["stopped or failed"] += 1
        return None

    def line(self, chosen: Sequence[EarlierTrial]) -> str:
        """What it gives, in words."""
        tried = sum(trial.sweep == self.sweep.place for trial in chosen)
        parts = [f"{len(self.known)} trials enter with their results", f"the values of {tried} are tried first"]
        if self.differing and not self.known:
            more = f" and {len(self.differing) - 3} more" if len(self.differing) > 3 else ""
            parts[0] = f"no result enters, since this sweep differs in {', '.join([*self.differing][:3])}{more}"
        left_out = Counter(self.left_out)
        if beyond := sum(trial not in chosen for trial in self.to_try):
            left_out["beyond a third of the trials, or tried already"] = beyond
        if left_out:
            parts.append(f"{left_out.total()} give nothing ({', '.join(f'{count} {reason}' for reason, count in left_out.items())})")
        running = "; it is still running, and what it finds from now on isn't seen" if is_driven(self.sweep.folder.folder) else ""
        return f"from {self.sweep.place}: {'; '.join(parts)}{running}"


def _tree(sweep: EarlierSweep, record: TrialRecord) -> dict[str, Any]:
    """The tree that a trial was trained with. Raises KeyError where its values aren't those of the sweep's ranges."""
    origin = PLAIN_ORIGIN if record.origin == PLAIN_ORIGIN else SAMPLER
    proposal = Proposal(record.number or 0, dict(record.params), origin, TrialState[record.state])
    return search_job(sweep.document, sweep.file, proposal).tree


def _measured(file: FileSpec, earlier: FileSpec) -> dict[str, Any]:
    return {name: way for name, way in file.search.objectives.items() if name in earlier.evaluate.metrics}


def _conditions(document: Document, file: FileSpec, sweep: EarlierSweep) -> tuple[set[str], list[str]]:
    """The fields whose files are the same as in an earlier sweep, and what keeps all of its results from entering."""
    same, differing = compared_with(sweep.folder.folder, document.tree)
    for name in [*file.search.objectives, *file.search.constraints]:
        if name not in sweep.file.evaluate.metrics:
            differing.append(f"evaluate.metrics ({name} wasn't measured)")
    return same, differing


def _evaluated(sweep: EarlierSweep) -> Iterator[tuple[TrialRecord, list[EvaluationRow]]]:
    """The search's trials of an earlier sweep with their evaluations; those of a remote one are read side by side."""
    folder = sweep.folder
    with ThreadPoolExecutor(1 if folder.folder.local is not None else AT_ONCE) as pool:
        read = pool.map(lambda name: (folder.record(name), folder.rows(name)), (folder.folder / "trials").names())
        found = [(record, rows) for record, rows in read if record is not None and record.kind == "search"]
    yield from sorted(found, key=lambda one: one[0].number or 0)


def _values_here(
    document: Document, params: Mapping[str, Any], raw: Mapping[str, Any], effective: Mapping[str, Any]
) -> dict[str, Any] | str:
    """An earlier trial's values in this sweep's space; the path of a range that has none of its values."""

    def value(parameter: Parameter) -> Any:
        path = parameter.path
        for said in [*([params[path]] if path in params else []), *_at(raw, path), *_at(effective, path)]:
            if parameter.range.contains(said):
                return said
        raise KeyError(path)

    try:
        return Space(document.tree).choose(value)
    except KeyError as outside:
        return str(outside.args[0])


def _at(tree: Mapping[str, Any], path: str) -> list[Any]:
    """The value at a path, if there is one; of a mapping the label as well that it would have as an alternative (`lora`, `ant+sdft`)."""
    try:
        value = value_at(tree, path)
    except KeyError:
        return []
    return [value, label_of(value)] if isinstance(value, dict) else [value]


def _compared(effective: Mapping[str, Any], same: set[str]) -> dict[str, Any]:
    """What of a trial's tree its value depends on, without the places of the `same` files."""
    tree = copy.deepcopy({key: value for key, value in effective.items() if key not in NOT_COMPARED[""]})
    for section, keys in NOT_COMPARED.items():
        for key in keys if section else ():
            tree[section].pop(key, None)
    for place in places(tree):
        if place.path in same:
            place.put("")
    return tree


def _result(record: TrialRecord, rows: Sequence[EvaluationRow], ranking: Ranking) -> Result:
    """How a trial ended, by this sweep's objectives: its best evaluation may be another one by them."""
    best = ranking.best_index([row.metrics for row in rows])
    state = TrialState[record.state]
    if best is None and state is not TrialState.FAIL:
        return Result(TrialState.FAIL, None, rows, {}, f"no evaluation has a finite {next(iter(ranking.objectives))}", "values")
    values = None if best is None else rows[best].metrics
    excess = ranking.violations(values) if values and state is not TrialState.FAIL else {}
    return Result(state, values, rows, excess, record.error, record.failed_by, record.stopped)
