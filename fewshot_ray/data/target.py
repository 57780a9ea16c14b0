"""Which pictures are trained on and which are held out: a function of their contents, not of names or order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewshot_ray.data.images import ImageSet
from fewshot_ray.errors import UserError

if TYPE_CHECKING:
    from fewshot_ray.spec.sections import CrossFit


@dataclass(frozen=True)
class Fold:
    """The training and the held-out pictures of one fold; they share no picture."""

    name: str
    """`holdout` where there is one fold, `fold-1-of-5` and so on where there are several."""
    train: ImageSet
    holdout: ImageSet


def choose_shots(images: ImageSet, shots: int | None, split_seed: int) -> ImageSet:
    """`shots` of the pictures (None: all), copies counted once, in an order that depends on the seed.

    It depends on the set of contents, the number and the seed alone; the first k of a larger choice are those that k shots would give.
    Raises UserError where there are fewer distinct pictures.
    """
    ordered = _shuffled(images, split_seed, "shots")
    if shots is None:
        return ordered
    if shots > len(ordered):
        copies = f" ({len(images)} with copies)" if len(images) > len(ordered) else ""
        raise UserError(
            f"target.shots: {shots} are asked for, but there are {len(ordered)} different images{copies}; 1 .. {len(ordered)} is right"
        )
    return ordered.select(range(shots))


def make_folds(shots: ImageSet, holdout: ImageSet | int | CrossFit, split_seed: int) -> list[Fold]:
    """The folds of one trial.

    From a set of held-out pictures the shots are removed, also re-encoded ones; a number holds that many shots out; cross-fitting gives K
    folds whose held-out parts partition the shots, in sizes that differ by one at most.
    Raises UserError where a part would be empty.
    """
    shots = shots.distinct()
    if isinstance(holdout, ImageSet):
        return [_fold_with_set(shots, holdout)]
    if isinstance(holdout, int):
        return [_fold_with_some_kept_back(shots, holdout, split_seed)]
    return _cross_fit(shots, holdout.crossfit, split_seed)


def _fold_with_set(shots: ImageSet, holdout: ImageSet) -> Fold:
    rest = holdout.distinct().without(shots)
    if len(rest) == 0:
        raise UserError(
            f"target.holdout: all of its {len(holdout)} images are among the {len(shots)} shots; images never trained on are right"
        )
    return Fold("holdout", train=shots, holdout=rest)


def _fold_with_some_kept_back(shots: ImageSet, kept_back: int, split_seed: int) -> Fold:
    if not 1 <= kept_back < len(shots):
        raise UserError(f"target.holdout: {kept_back} of {len(shots)} shots cannot be kept back; 1 .. {len(shots) - 1} is right")
    ordered = _shuffled(shots, split_seed, "holdout")
    return Fold("holdout", train=ordered.select(range(kept_back, len(ordered))), holdout=ordered.select(range(kept_back)))


def _cross_fit(shots: ImageSet, folds: int, split_seed: int) -> list[Fold]:
    if not 2 <= folds <= len(shots):
        raise UserError(f"target.holdout: crossfit {folds} does not fit {len(shots)} shots; 2 .. {len(shots)} is right")
    ordered = _shuffled(shots, split_seed, "crossfit")
    return [
        Fold(
            f"fold-{fold + 1}-of-{folds}",
            train=ordered.select(index for index in range(len(ordered)) if index % folds != fold),
            holdout=ordered.select(range(fold, len(ordered), folds)),
        )
        for fold in range(folds)
    ]


def _shuffled(images: ImageSet, seed: int, purpose: str) -> ImageSet:
    """Distinct pictures in the order of a hash of seed and content: the same with all versions of all libraries."""
    distinct = images.distinct()

    def rank(index: int) -> str:
        return hashlib.sha256(f"{purpose}:{seed}:{distinct.hashes[index]}".encode()).hexdigest()

    return distinct.select(sorted(range(len(distinct)), key=rank))
