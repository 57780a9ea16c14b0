"""Which evaluation is a trial's value."""

import math

import pytest

from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.trial.best import best_index, violations

KID = SearchSpec(objectives={"kid": "min", "intra_distance": "max"}, constraints={"memorisation": "<= 0.2", "occupancy": ">= 0.5"})


def row(kid: float, memorisation: float = 0.0, occupancy: float = 1.0) -> dict[str, float]:
    return {"kid": kid, "intra_distance": 0.0, "memorisation": memorisation, "occupancy": occupancy}


def test_violations() -> None:
    """Oracle: .5 - .2 and .5 - .75; no number is no kept bound."""
    assert violations(row(0, 0.5, 0.75), KID) == {"memorisation": pytest.approx(0.3), "occupancy": -0.25}
    assert violations(row(0, math.nan), KID)["memorisation"] == math.inf
    assert violations({"kid": 0.0}, KID) == {"memorisation": math.inf, "occupancy": math.inf}


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([row(3), row(1), row(2)], 1),
        ([row(1), row(1)], 0),
        ([row(1, memorisation=0.3), row(2), row(0.5, occupancy=0.4)], 1),
        ([row(1, 0.5), row(2, 0.3), row(0, 0.9)], 1),
        ([row(math.nan), row(5), row(-math.inf)], 1),
        ([row(1, memorisation=math.nan), row(2)], 1),
        ([{}, row(2)], 1),
        ([row(math.nan), {}], None),
        ([], None),
    ],
)
def test_best(rows: list[dict[str, float]], best: int | None) -> None:
    """Oracle: least KID within the bounds, the earliest of equals; where none is within them, the one least past them."""
    assert best_index(rows, KID) == best


def test_larger_may_be_better() -> None:
    """Oracle: the largest."""
    assert best_index([{"fd": 1.0}, {"fd": 3.0}, {"fd": 2.0}], SearchSpec(objectives={"fd": "max"})) == 1
