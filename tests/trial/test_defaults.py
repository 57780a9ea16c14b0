"""What a file without objectives or metrics is ordered by."""

from __future__ import annotations

from typing import Any

import pytest

from fewshot_ray.spec.document import Document
from fewshot_ray.trial.compose import check_document
from fewshot_ray.trial.defaults import with_defaults

PRETRAINED = {"model": "embedded://digits-ddpm"}
BUILD: dict[str, Any] = {"build": {"sample_size": 8}}
GAN: dict[str, Any] = {"gan": {"stylegan2": {"resolution": 8}}}
PLACE = "embedded://digits/validation"


def tree(source: dict[str, Any], holdout: Any, **sections: Any) -> dict[str, Any]:
    target = {"images": "embedded://digits/shots"} | ({} if holdout is None else {"holdout": holdout})
    return {"name": "defaults", "source": source, "target": target, "method": {"finetune": {}}, **sections}


@pytest.mark.parametrize(
    ("source", "holdout", "evaluate", "objective", "metrics"),
    [
        (PRETRAINED, PLACE, {}, "relative_error", ["relative_error", "memorisation"]),
        (PRETRAINED, 5, {}, "relative_error", ["relative_error", "memorisation"]),
        (PRETRAINED, 4, {}, "relative_loss", ["relative_loss"]),
        (PRETRAINED, {"crossfit": 5}, {}, "relative_loss", ["relative_loss"]),
        (PRETRAINED, None, {}, "relative_loss", ["relative_loss"]),
        (PRETRAINED, PLACE, {"samples": 0}, "relative_loss", ["relative_loss"]),
        (PRETRAINED, PLACE, {"metrics": ["kid", "holdout_loss"]}, "kid", ["kid", "holdout_loss"]),
        (PRETRAINED, PLACE, {"metrics": ["kid", "relative_error"]}, "relative_error", ["kid", "relative_error"]),
        (BUILD, PLACE, {}, "holdout_loss", ["holdout_loss"]),
        (GAN, PLACE, {}, "kid", ["kid"]),
        (GAN, PLACE, {"metrics": ["recall", "kid"]}, "kid", ["recall", "kid"]),
    ],
)
def test_the_objective_by_case(source: dict[str, Any], holdout: Any, evaluate: dict[str, Any], objective: str, metrics: list[str]) -> None:
    """Oracle: the table of the reference; by hand."""
    filled = with_defaults(tree(source, holdout, evaluate=evaluate))
    assert list(filled["search"]["objectives"]) == [objective]
    assert filled["evaluate"]["metrics"] == metrics
    bounded = objective == "relative_error" and "memorisation" in metrics
    assert filled["search"].get("constraints", {}) == ({"memorisation": "<= 0.05"} if bounded else {})


def test_what_the_file_says_stands() -> None:
    """Oracle: by hand; metrics that only objectives and constraints name are measured."""
    search = {"objectives": {"fd": "min"}, "constraints": {"coverage": ">= 0.2"}}
    filled = with_defaults(tree(PRETRAINED, PLACE, search=search))
    assert filled["search"] == search
    assert filled["evaluate"]["metrics"] == ["fd", "coverage"]
    own = with_defaults(tree(PRETRAINED, PLACE, search={"constraints": {"memorisation": "<= 0.2"}}))
    assert own["search"] == {"objectives": {"relative_error": "min"}, "constraints": {"memorisation": "<= 0.2"}}


def test_a_file_without_either_is_valid() -> None:
    """Oracle: the checks that every file goes through."""
    document, file = check_document(Document(tree(PRETRAINED, PLACE, search={"trials": 3}), "defaults"))
    assert file.search.objectives == {"relative_error": "min"}
    assert document.tree["search"]["trials"] == 3
