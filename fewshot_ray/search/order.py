"""The order of a search's trials: those whose values are given come first, then the sampler's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from fewshot_ray.search.frozen_trials import EARLIER, PLAIN_ORIGIN, EarlierTrial, Proposal
from fewshot_ray.search.jobs import first_trials
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import trial_id
from fewshot_ray.search.warm_start import begin_with_earlier
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import FileSpec
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import has_plain, search_trials

First: TypeAlias = tuple[Mapping[str, Any], str, EarlierTrial | None]
"""Values by dotted path, their origin, and the trial of an earlier sweep that had them."""


class Order:
    """Says which trial of a search is next; all that was said is in its study, so a resumed one goes on in the same order."""

    def __init__(self, study: Study, journal: Journal, first: Sequence[First], trials: int) -> None:
        """`first`: the trials before the sampler's; `trials`: number of the search's trials."""
        self.study = study
        self.journal = journal
        self.first = first
        self.trials = trials

    @classmethod
    def of(cls, document: Document, file: FileSpec, own: Folder, journal: Journal, say: Callable[[str], None]) -> Order:
        """Of a sweep's search: preset, plain fine-tuning, what earlier sweeps give to try, then the sampler. Raises UserError."""
        outside = () if has_plain(document) else (PLAIN_ORIGIN,)
        study = Study(journal.path, file.name, file.search, document.tree, seed=file.seed, outside=outside)
        begin_with_earlier(study, document, file, own, say)
        first: list[First] = [(values, origin, None) for values, origin in first_trials(document, file)]
        first += [(trial.values, EARLIER, trial) for trial in study.to_try or ()]
        trials = search_trials(document, file, known=study.known_elsewhere([values for values, *_ in first]))
        return cls(study, journal, first, trials)

    @property
    def references(self) -> int:
        """Number of trials that the others are compared with: preset and plain fine-tuning, or the file's values."""
        return sum(earlier is None for *_, earlier in self.first)

    @property
    def left(self) -> int:
        """Number of trials that haven't been proposed yet."""
        return max(0, self.trials - self.study.trained)

    def next(self) -> Proposal:
        """The proposal of the next trial that is trained; it is in the journal from then on."""
        number = self.study.trained
        proposal = self.study.add(*self.first[number]) if number < len(self.first) else self.study.propose()
        self.journal.sync()
        return proposal

    def proposed_again(self, before: Proposal) -> str | None:
        """What the sampler proposed again just before this proposal, in words; None where nothing."""
        proposals, originals, number = self.study.proposals(), set(), before.number - 1
        while number >= 0 and (original := proposals[number].repeats) is not None:
            originals.add(original)
            number -= 1
        again = ", ".join(proposals[number].taken_from or trial_id(number) for number in sorted(originals))
        return f"{trial_id(before.number)}: before it the sampler proposed {again} again, not trained anew" if again else None
