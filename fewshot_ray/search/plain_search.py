"""Plain fine-tuning's own search (`confirm.plain: tuned`): as many trials as the search of the methods, by the same sampler.

It has a study of its own in the sweep's journal, so the search's study says what happened in the search alone, and its sampler sees no
trial of this one. The ranges are the file's below `train`; a learning rate that the file fixes is searched by a factor of ten either way.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fewshot_ray.search.frozen_trials import Proposal
from fewshot_ray.search.job import Job
from fewshot_ray.search.jobs import first_trials, search_job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.kept_checkpoints import KeptCheckpoints
from fewshot_ray.search.order import Order
from fewshot_ray.search.records import Records
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import SweepFolder, plain_trial_id
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.ranges import FloatRange
from fewshot_ray.spec.sections import FileSpec, TrainSpec
from fewshot_ray.spec.space import Space
from fewshot_ray.trial.compose import PLAIN, plain, search_trials

LR = "train.lr"
FACTOR = 10.0
"""How far a learning rate that the file fixes is searched, either way."""


def plain_document(document: Document) -> Document:
    """Plain fine-tuning over the file's ranges below `train`, its learning rate among them."""
    own = plain(document)
    if any(parameter.path == LR for parameter in Space(own.tree).parameters):
        return own
    tree: dict[str, Any] = copy.deepcopy(own.tree)
    train = tree.setdefault("train", {})
    lr = float(train.get("lr", TrainSpec().lr))
    train["lr"] = FloatRange(lr / FACTOR, lr * FACTOR, log=True, preset=lr)
    return replace(own, tree=tree)


def plain_trials(document: Document, file: FileSpec) -> int:
    """Number of its trials: as many as the search has, at most the number of configurations; 0 where it isn't asked for."""
    if file.search.confirm is None or file.search.confirm.plain != "tuned":
        return 0
    most = file.search.model_copy(update={"trials": search_trials(document, file)})
    return search_trials(plain_document(document), _alone(file.model_copy(update={"search": most})))


def plain_study_name(file: FileSpec) -> str:
    """The name of its study."""
    return f"{file.name}: plain fine-tuning"


def _alone(file: FileSpec) -> FileSpec:
    return file.model_copy(update={"method": {PLAIN: {}}})


class PlainSearch:
    """The trials of plain fine-tuning's own search, which follow the search's. All of it is in the journal and the folder."""

    def __init__(self, document: Document, file: FileSpec, journal: Journal, folder: SweepFolder) -> None:
        self.document = plain_document(document)
        self.file = _alone(file)
        self.trials = plain_trials(document, file)
        self.folder = folder
        self.study = Study(journal.path, plain_study_name(file), file.search, self.document.tree, seed=file.seed)
        first = [(values, origin, None) for values, origin in first_trials(self.document, self.file)]
        self.order = Order(self.study, journal, first, self.trials)
        self.wanted = False
        """Whether there is a winner to compare with it."""
        self.pending = [self._job(one) for one in self.study.proposals() if one.repeats is None and not self._has_ended(one)]
        """Trials that were proposed before a resume and haven't ended."""

    @classmethod
    def of(cls, document: Document, file: FileSpec, journal: Journal, folder: SweepFolder) -> PlainSearch | None:
        """The sweep's, or None where the file doesn't ask for one."""
        return cls(document, file, journal, folder) if plain_trials(document, file) else None

    def reconcile(self, records: Records, kept: KeptCheckpoints) -> None:
        """Tell the study of trials that ended just before a kill, and find the checkpoint that is kept."""
        proposals = self.study.proposals()
        for record in self.folder.trials():
            if record.kind != "plain" or record.state == "RUNNING":
                continue
            if record.number is not None and record.number < len(proposals) and not proposals[record.number].state.is_finished():
                records.tell(record)
            kept.ended(record)

    def look(self, jobs: Iterable[Job]) -> None:
        """Look whether it is wanted, by the jobs after the search: not before a winner is chosen, nor where that is plain itself."""
        reporting = self.file.search.confirm.reporting if self.file.search.confirm is not None else []
        self.wanted = any(job.kind == "confirm" and job.seed in reporting and PLAIN not in job.tree["method"] for job in jobs)

    def next_job(self) -> Job | None:
        """The next trial; None where none is left to start."""
        if self.pending:
            return self.pending.pop(0)
        return self._job(self.order.next()) if self.wanted and self.order.left else None

    @property
    def is_over(self) -> bool:
        """Whether all of its trials have ended."""
        return not self.order.left and self.ended == self.study.trained

    @property
    def ended(self) -> int:
        """Number of its trials that have ended."""
        return sum(one.repeats is None and self._has_ended(one) for one in self.study.proposals())

    def _has_ended(self, proposal: Proposal) -> bool:
        record = self.folder.record(plain_trial_id(proposal.number))
        return record is not None and record.state != "RUNNING"

    def _job(self, proposal: Proposal) -> Job:
        job = search_job(self.document, self.file, proposal)
        who = "the preset" if proposal.origin != "sampler" else "sampler"
        return replace(job, id=plain_trial_id(proposal.number), kind="plain", label=f"plain fine-tuning, {who}")
