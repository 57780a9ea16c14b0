"""What evaluations and trials are ordered by."""

import math
import random
from typing import Literal

import pytest

from fewshot_ray.spec.sections import SearchSpec
from fewshot_ray.trial.ranking import Merit, Ranking

KID = Ranking.of(
    SearchSpec(objectives={"kid": "min", "intra_distance": "max"}, constraints={"memorisation": "<= 0.2", "occupancy": ">= 0.5"})
)


def row(kid: float, memorisation: float = 0.0, occupancy: float = 1.0) -> dict[str, float]:
    return {"kid": kid, "intra_distance": 0.0, "memorisation": memorisation, "occupancy": occupancy}


def of_merits(merits: list[Merit]) -> tuple[Ranking, list[dict[str, float]]]:
    """A ranking of one bound, and evaluations that have these merits in it."""
    objectives: dict[str, Literal["min", "max"]] = {f"o{number}": "min" for number in range(len(merits[0]) - 1)}
    rows = [{"excess": merit[0], **dict(zip(objectives, merit[1:], strict=True))} for merit in merits]
    return Ranking(objectives, {"excess": ("<=", 0.0)}), rows


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
    ranking, evaluations = of_merits([further, b, past, a, c])
    assert [standing.front for standing in ranking.standings(evaluations)] == [3, 1, 2, 0, 0]
    assert [standing.place for standing in ranking.standings(evaluations)] == [4, 2, 3, 0, 1]
    assert ranking.front(evaluations) == [3, 4]
    ranking, evaluations = of_merits([past, further])
    assert [standing.front for standing in ranking.standings(evaluations)] == [0, 1]
    assert ranking.standings([]) == ranking.front([]) == []
    ranking, evaluations = of_merits([(0, 1), (0, 0), (0, 1), (0, 0)])
    assert [standing.place for standing in ranking.standings(evaluations)] == [2, 0, 3, 1]
    assert ranking.front(evaluations) == [1]


def test_what_is_not_measured_is_on_no_front() -> None:
    """Oracle: alone it is in the first place, and measured it is not."""
    (standing,) = KID.standings([{"kid": math.nan}])
    assert (standing.place, standing.measured, KID.front([{"kid": math.nan}])) == (0, False, [])


@pytest.mark.parametrize("metrics", [row(1), row(2, memorisation=0.3), row(math.nan)])
def test_better_than_an_earlier_one(metrics: dict[str, float]) -> None:
    """Oracle: the best of the two, an equal one being the earlier."""
    assert not KID.is_better(metrics, row(1))
    assert KID.is_better(row(0.5), metrics)
    assert KID.is_better(metrics, None) == math.isfinite(metrics["kid"])


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_fronts_are_peeled(objectives: int) -> None:
    """Oracle: the definition: front k is what nobody dominates once the fronts before it are taken away."""
    draw = random.Random(0)
    merits: list[Merit] = [(draw.choice([0, 0, 0.1]), *(draw.randint(0, 5) for _ in range(objectives))) for _ in range(60)]

    def dominates(a: Merit, b: Merit) -> bool:
        return a[0] < b[0] or (a[0] == b[0] and a != b and all(one <= other for one, other in zip(a[1:], b[1:], strict=True)))

    left, expected = set(range(60)), [0] * 60
    for number in range(60):
        front = {one for one in left if not any(dominates(merits[other], merits[one]) for other in left)}
        for one in front:
            expected[one] = number
        left -= front
    ranking, evaluations = of_merits(merits)
    assert [standing.front for standing in ranking.standings(evaluations)] == expected
