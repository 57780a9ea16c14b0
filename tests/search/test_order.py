"""The order of a search's trials."""

from __future__ import annotations

from pathlib import Path

from fewshot_ray.search.journal import Journal
from fewshot_ray.search.order import Order
from fewshot_ray.search.study import Study
from fewshot_ray.search.sweep_folder import trial_id
from fewshot_ray.spec.ranges import Choice
from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.storage import Folder

SPACE = {"train": {"lr": Choice((1e-3, 1e-2)), "batch_size": Choice((4, 8))}}
GIVEN = {"train.lr": 1e-2, "train.batch_size": 8}


def test_given_trials_come_first_and_what_is_proposed_again_is_named(tmp_path: Path) -> None:
    """Oracle: the study's trials: those between two that are trained are repeats; each configuration is trained once."""
    journal = Journal(Folder(tmp_path))
    study = Study(journal.path, "s", SearchSpec(sampler="random", trials=4), SPACE, seed=3)
    order = Order(study, journal, [(GIVEN, "preset", None)], 4)
    proposals = []
    while order.left:
        proposals.append(order.next())
        between = study.proposals()[proposals[-2].number + 1 if len(proposals) > 1 else 0 : proposals[-1].number]
        again = ", ".join(trial_id(number) for number in sorted({one.repeats for one in between if one.repeats is not None}))
        said = f"{trial_id(proposals[-1].number)}: before it the sampler proposed {again} again, not trained anew"
        assert order.proposed_again(proposals[-1]) == (said if again else None)
    assert (proposals[0].values, proposals[0].origin) == (GIVEN, "preset")
    assert {one.origin for one in proposals[1:]} == {"sampler"}
    assert len({str(sorted(one.values.items())) for one in proposals}) == 4
    assert len(study.proposals()) > 4
    assert order.references == 1
