"""Remarks on a file's images: files that aren't read, doubtful colours, and the same picture at two places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fewshot_ray.data.images import ImageSet, UnreadableImageError, content_hash, decoded, fit, to_tensor
from fewshot_ray.data.likeness import Likeness, likenesses, perceptual_hash
from fewshot_ray.data.places import passed_over, pictures
from fewshot_ray.spec.places import places
from fewshot_ray.trial.materials import Materials

MOST_COMPARED = 2_000
"""Largest number of source images that are compared with the shots."""


def image_remarks(materials: Materials) -> Iterator[str]:
    """Remarks of one line, each starting with the field or the picture's name. Raises UserError where a place can't be read."""
    file = materials.spec.file
    for place in places(file.model_dump()):
        if place.images and (passed := passed_over(place.value)):
            yield f"{place.path}: passed over: {passed}"
    holdout = file.target.holdout
    held_out = materials.read(holdout) if isinstance(holdout, str) else None
    if held_out is not None:
        yield from held_out.notes
        yield from _leaks("target.holdout", held_out, "shots", materials.shots)
    if file.target.test is not None:
        test = materials.read(file.target.test)
        yield from test.notes
        yield from _leaks("target.test", test, "shots", materials.shots)
        if held_out is not None:
            yield from _leaks("target.test", test, "held-out images", held_out)
    if file.source.images not in (None, "generated"):
        yield from _source(str(file.source.images), materials)


def _leaks(field: str, images: ImageSet, name: str, others: ImageSet) -> Iterator[str]:
    """Remarks on pictures of `images` that are also in `others`, re-encoded or similar.

    Those of the same content are left out without a remark: a place that also has the shots is common.
    """
    found = [one for one in likenesses(images, others) if images.hashes[one.index] != others.hashes[one.other]]
    same, alike = [one for one in found if one.same], [one for one in found if not one.same]
    if same:
        yield f"{field}: {len(same)} of {len(images)} are {name} saved again ({_pairs(same, images, others)}); they are left out"
    if alike:
        yield (
            f"{field}: {len(alike)} of {len(images)} look like {name} ({_pairs(alike, images, others)}); "
            "remove those that show the same, or the evaluation is on known images"
        )


def _pairs(found: Sequence[Likeness], images: ImageSet, others: ImageSet) -> str:
    more = ", ..." if len(found) > 3 else ""
    return ", ".join(f"{images.names[one.index]} and {others.names[one.other]}" for one in found[:3]) + more


def _source(place: str, materials: Materials) -> Iterator[str]:
    """A remark on source images that resemble shots: methods with a domain classifier (ANT) would see them in both domains."""
    found, shots = [], materials.shots
    for compared, picture in enumerate(pictures(place)):
        if compared == MOST_COMPARED:
            yield f"source.images: the first {MOST_COMPARED} are compared with the shots, the others aren't"
            break
        try:
            image = decoded(picture).image
        except UnreadableImageError:  # reported where they are read
            continue
        pixels = to_tensor(fit(image, materials.size), materials.channels)
        one = ImageSet(pixels[None], (picture.name,), (content_hash(image),), (perceptual_hash(image),))
        found += [f"{picture.name} and {shots.names[likeness.other]}" for likeness in likenesses(one, shots)]
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        yield f"source.images: {len(found)} look like shots of the target ({shown}); images of the source alone are right"
