"""What evaluations and trials are ordered by."""

import math
import random

import pytest

from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.trial.ranking import Merit, Ranking, fronts, ranked

KID = Ranking.of(
    SearchSpec(objectives={"kid": "min", "intra_distance": "max"}, constraints={"memorisation": "<= 0.2", "occupancy": ">= 0.5"})
)


def row(kid: float, memorisation: float = 0.0, occupancy: float = 1.0) -> dict[str, float]:
    return {"kid": kid, "intra_distance": 0.0, "memorisation": memorisation, "occupancy": occupancy}


def test_violations() -> None:
    """Oracle: .5 - .2 and .5 - .75; no number is no kept bound."""
    assert KID.violations(row(0, 0.5, 0.75)) == {"memorisation": pytest.approx(0.3), "occupancy": -0.25}
    assert KID.violations(row(0, math.nan))["memorisation"] == math.inf
    assert KID.violations({"kid": 0.0}) == {"memorisation": math.inf, "occupancy": math.inf}


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
    assert KID.best_index(rows) == best


def test_larger_may_be_better() -> None:
    """Oracle: the largest."""
    assert Ranking({"fd": "max"}).best_index([{"fd": 1.0}, {"fd": 3.0}, {"fd": 2.0}]) == 1


def test_the_merit_is_excess_before_objectives() -> None:
    """Oracle: by hand; a maximised objective is turned, and what isn't measured comes last."""
    assert KID.merit(row(3, memorisation=0.45, occupancy=0.25)) == (pytest.approx(0.5), 3, 0.0)
    assert KID.merit({**row(3), "intra_distance": 2.0}) == (0, 3, -2.0)
    assert KID.merit({**row(3), "intra_distance": math.nan}) == (math.inf,) * 3


def test_fronts_by_hand() -> None:
    """Oracle: by hand: a and c are on the front, b is behind c; what is past a bound is behind all that keeps it, by its excess."""
    a, b, c, past, further = (0, 1, 3), (0, 3, 2), (0, 2, 1), (0.1, 0, 0), (0.2, 0, 0)
    merits: list[Merit] = [further, b, past, a, c]
    assert fronts(merits) == [3, 1, 2, 0, 0]
    assert ranked(merits) == [3, 4, 1, 2, 0]
    assert fronts([past, further]) == [0, 1]
    assert fronts([]) == []
    assert ranked([(0, 1), (0, 0), (0, 1)]) == [1, 0, 2]


def test_fronts_are_peeled() -> None:
    """Oracle: the definition: front k is what nobody dominates once the fronts before it are taken away."""
    draw = random.Random(0)
    merits = [(draw.choice([0, 0, 0.1]), draw.randint(0, 5), draw.randint(0, 5)) for _ in range(60)]

    def dominates(a: Merit, b: Merit) -> bool:
        return a[0] < b[0] or (a[0] == b[0] and a != b and a[1] <= b[1] and a[2] <= b[2])

    left, expected = set(range(60)), [0] * 60
    for number in range(60):
        front = {one for one in left if not any(dominates(merits[other], merits[one]) for other in left)}
        for one in front:
            expected[one] = number
        left -= front
    assert fronts(merits) == expected
