"""What `check` says of the images of all places: what isn't read, and the same picture at two of them."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fewshot_ray.spec.document import read_document
from fewshot_ray.trial import remarks
from fewshot_ray.trial.compose import check_document
from fewshot_ray.trial.finished import TestSplit
from fewshot_ray.trial.preflight import CPU, preset_materials
from tests.cli.conftest import Command, Desk, painting, write_pictures


def saved_again(photos: Path, folder: Path, quality: int = 80) -> None:
    """Every picture as an upright JPEG."""
    from PIL import ImageOps

    folder.mkdir()
    for path in photos.iterdir():
        with Image.open(path) as image:
            ImageOps.exif_transpose(image).convert("RGB").save(folder / f"{path.stem}.jpeg", quality=quality, subsampling=0)


def test_shots_saved_again_at_every_place(desk: Desk, fewshot: Command) -> None:
    """Oracle: the six shots as JPEG among four others, at each place; they are named, and measured on are the others alone."""
    for place in ("held", "test"):
        saved_again(desk.folder / "photos", desk.folder / place)
        for seed in range(20, 24):
            painting(seed + 10 * (place == "test")).save(desk.folder / place / f"new {seed}.png")
    saved_again(desk.folder / "photos", desk.folder / "domain")
    desk.tree["target"] |= {"holdout": str(desk.folder / "held"), "test": str(desk.folder / "test")}
    desk.tree["source"]["images"] = str(desk.folder / "domain")
    answer = fewshot("check", desk.write())
    assert answer.code == 0, answer.err
    for field in ("target.holdout", "target.test"):
        assert f"{field}: 6 of 10 are shots saved again (2.jpeg and 2.webp, " in answer.out
    assert "target.test: 6 of 10 are held-out images saved again" not in answer.out  # the same files there
    assert "source.images: 6 look like shots of the target (2.jpeg and 2.webp, " in answer.out
    document, file = check_document(read_document(desk.file))
    materials = preset_materials(document, file)
    assert [name[:3] for name in materials.folds[0].holdout.names] == ["new"] * 4
    assert [name[:3] for name in TestSplit(materials.spec, materials.cache, CPU).fold.holdout.names] == ["new"] * 4


def test_held_out_images_saved_again_in_test(desk: Desk, fewshot: Command) -> None:
    """Oracle: the four held-out pictures as JPEG are no test images."""
    write_pictures(desk.folder / "held", 4, first=20)
    saved_again(desk.folder / "held", desk.folder / "test")
    write_pictures(desk.folder / "more", 3, first=30)
    for path in (desk.folder / "more").iterdir():
        path.rename(desk.folder / "test" / path.name)
    desk.tree["target"] |= {"holdout": str(desk.folder / "held"), "test": str(desk.folder / "test")}
    answer = fewshot("check", desk.write())
    assert "target.test: 4 of 7 are held-out images saved again" in answer.out
    document, file = check_document(read_document(desk.file))
    spec = preset_materials(document, file).spec
    assert len(TestSplit(spec, preset_materials(document, file).cache, CPU).fold.holdout) == 3


def test_what_is_passed_over_is_said_of_every_place(desk: Desk, fewshot: Command) -> None:
    """Oracle: what was put beside the pictures; a mask is no shot."""
    photos = desk.folder / "photos"
    (photos / "2.txt").write_text("a caption")
    Image.new("L", (48, 48), 255).save(photos / "2-masklabel.png")
    write_pictures(desk.folder / "held", 4, first=20)
    (desk.folder / "held" / ".DS_Store").write_bytes(b"")
    desk.tree["target"]["holdout"] = str(desk.folder / "held")
    answer = fewshot("check", desk.write())
    assert answer.code == 0, answer.err
    assert "6 different ones" in answer.out
    assert "target.images: passed over: 1 masks or conditioning images (2-masklabel.png), 1 text (2.txt)" in answer.out
    assert "target.holdout: passed over: 1 hidden (.DS_Store)" in answer.out


def test_pictures_by_what_they_hold_and_where_links_lead(desk: Desk, fewshot: Command) -> None:
    """Oracle: the six that there were, two of them under other endings and one in a linked folder."""
    photos = desk.folder / "photos"
    (photos / "IMG_1.JPG").rename(photos / "IMG_1.jfif")
    (photos / "2.webp").rename(photos / "2.download")
    (desk.folder / "album").mkdir()
    (photos / "logo3.png").rename(desk.folder / "album" / "logo3.png")
    (photos / "album").symlink_to(desk.folder / "album")
    (photos / "again").symlink_to(photos)
    answer = fewshot("check", desk.write())
    assert "6 different ones" in answer.out
    assert "target.images: passed over: 1 links to folders already read (again)" in answer.out


def test_shards_of_two_columns(desk: Desk, fewshot: Command) -> None:
    """Oracle: the pictures of the column that is named, one a row; without a name both are, in the one line."""
    (desk.folder / "shards").mkdir()
    for shard in range(2):
        column = pa.array([png(painting(seed)) for seed in range(3 * shard, 3 * shard + 3)])
        pq.write_table(pa.table({"drawn": column, "scan": column}), desk.folder / "shards" / f"{shard}.parquet")
    desk.tree["target"]["images"] = str(desk.folder / "shards")
    answer = fewshot("check", desk.write())
    assert answer.code == 2
    assert "2 columns hold images (drawn, scan); one of them by name, PLACE?column=drawn say, is right" in answer.err
    desk.tree["target"]["images"] += "?column=scan"
    answer = fewshot("check", desk.write())
    assert answer.code == 0, answer.err
    assert "6 different ones" in answer.out
    assert "target.images: passed over: 1 columns of images (drawn)" in answer.out


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def test_many_source_images_are_not_all_compared(desk: Desk, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remarks, "MOST_COMPARED", 2)
    write_pictures(desk.folder / "domain", 3, first=20)
    desk.tree["source"]["images"] = str(desk.folder / "domain")
    assert "source.images: the first 2 are compared with the shots" in fewshot("check", desk.write()).out


def test_doubtful_colours_are_said_of_every_place(desk: Desk, fewshot: Command) -> None:
    """Oracle: the rule for messages: the file by name, in the shots and in what is held out."""
    write_pictures(desk.folder / "held", 3, first=20)
    for place in ("photos", "held"):
        content = io.BytesIO()
        painting(50 + len(place)).save(content, "PNG", icc_profile=b"no profile")
        (desk.folder / place / f"{place}.png").write_bytes(content.getvalue())
    desk.tree["target"]["holdout"] = str(desk.folder / "held")
    answer = fewshot("check", desk.write())
    for place in ("photos", "held"):
        assert f"{place}.png: a damaged profile; its values are treated as sRGB" in answer.out
