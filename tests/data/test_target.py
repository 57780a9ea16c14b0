"""The choice of shots and folds: fixed by content, disjoint, complete."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fewshot_ray.data.images import ImageSet
from fewshot_ray.data.target import choose_shots, make_folds
from fewshot_ray.errors import UserError

Sets = Callable[..., ImageSet]


def crossfit(folds: int) -> Any:
    return SimpleNamespace(crossfit=folds)


def test_the_choice_depends_on_content_and_seed_alone(image_set: Sets) -> None:
    """Oracle: the same pictures listed backwards, under other names, with a copy among them."""
    images = image_set(*range(20))
    backwards = images.select([3, *reversed(range(20))])
    renamed = ImageSet(backwards.images, tuple(f"x{index}" for index in range(21)), backwards.hashes)
    chosen = choose_shots(images, 10, 0)
    assert choose_shots(renamed, 10, 0).hashes == chosen.hashes
    assert choose_shots(renamed, 10, 0).images.equal(chosen.images)
    assert choose_shots(images, 10, 1).hashes != chosen.hashes
    assert choose_shots(images, 5, 0).hashes == chosen.hashes[:5]


def test_none_takes_all_and_copies_count_once(image_set: Sets) -> None:
    images = image_set(1, 2, 2, 3)
    assert set(choose_shots(images, None, 0).hashes) == set(images.hashes)
    assert len(choose_shots(images, None, 0)) == 3
    with pytest.raises(UserError, match=r"4 are asked for, but there are 3 different images \(4 with copies\)"):
        choose_shots(images, 4, 0)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_folds_partition_the_shots(image_set: Sets, folds: int) -> None:
    shots = image_set(*range(10))
    made = make_folds(shots, crossfit(folds), 0)
    assert [fold.name for fold in made] == [f"fold-{number}-of-{folds}" for number in range(1, folds + 1)]
    held_out = [content for fold in made for content in fold.holdout.hashes]
    assert sorted(held_out) == sorted(shots.hashes)
    assert max(len(fold.holdout) for fold in made) - min(len(fold.holdout) for fold in made) <= 1
    for fold in made:
        assert set(fold.train.hashes) | set(fold.holdout.hashes) == set(shots.hashes)
        assert not set(fold.train.hashes) & set(fold.holdout.hashes)


def test_a_copy_never_stands_on_both_sides(image_set: Sets) -> None:
    for fold in make_folds(image_set(1, 1, 2, 2, 3, 3), crossfit(3), 0):
        assert not set(fold.train.hashes) & set(fold.holdout.hashes)


def test_folds_are_fixed_by_content(image_set: Sets) -> None:
    shots = image_set(*range(10))
    backwards = shots.select(reversed(range(10)))
    for one, other in zip(make_folds(shots, crossfit(5), 4), make_folds(backwards, crossfit(5), 4), strict=True):
        assert one.train.hashes == other.train.hashes
        assert one.holdout.hashes == other.holdout.hashes
    assert make_folds(shots, crossfit(5), 5)[0].holdout.hashes != make_folds(shots, crossfit(5), 4)[0].holdout.hashes


def test_a_number_is_kept_back(image_set: Sets) -> None:
    shots = image_set(*range(10))
    (fold,) = make_folds(shots, 3, 0)
    assert (len(fold.train), len(fold.holdout)) == (7, 3)
    assert sorted(fold.train.hashes + fold.holdout.hashes) == sorted(shots.hashes)


def test_a_given_set_is_freed_of_the_shots(image_set: Sets) -> None:
    shots = image_set(0, 1, 2)
    (fold,) = make_folds(shots, image_set(5, 1, 4, 4), 0)
    assert fold.train.hashes == shots.hashes
    assert fold.holdout.hashes == image_set(5, 4).hashes


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (crossfit(11), r"crossfit 11 does not fit 10 shots; 2 \.\. 10 is right"),
        (crossfit(1), "crossfit 1"),
        (10, r"10 of 10 shots cannot be kept back; 1 \.\. 9 is right"),
        (0, "0 of 10"),
    ],
)
def test_impossible_holdouts_get_one_line(image_set: Sets, holdout: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_folds(image_set(*range(10)), holdout, 0)


def test_a_holdout_of_nothing_but_shots_is_refused(image_set: Sets) -> None:
    with pytest.raises(UserError, match="all of its 2 images are among the 10 shots"):
        make_folds(image_set(*range(10)), image_set(3, 4), 0)
