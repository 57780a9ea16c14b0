"""What of a place is read, and that everything else is counted and named; oracle: the pictures that were put there."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewshot_ray.data.images import read_images
from fewshot_ray.data.places import passed_over, pictures
from fewshot_ray.errors import UserError

from .conftest import Paint, encode
from .test_places import parquet, put


def names(place: object) -> list[str]:
    return [picture.name for picture in pictures(str(place))]


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def everywhere(tmp_path: Path, memory: str, files: dict[str, bytes]) -> list[str]:
    """The same files in a folder, in a zip and at a URL."""
    fill(tmp_path / "folder", files)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
            put(f"{memory}/folder/{name}", content)
    return [str(tmp_path / "folder"), str(tmp_path / "all.zip"), f"{memory}/folder"]


def test_content_decides(tmp_path: Path, memory: str, paint: Paint) -> None:
    """Windows' .jfif, no ending at all and a wrong one are pictures; a caption, a sound (RIFF as WebP is) and weights are none."""
    files = {
        "1.jfif": encode(paint(1), "JPEG"),
        "2": encode(paint(2)),
        "3.download": encode(paint(3), "WEBP"),
        "4.gif": encode(paint(4)),
        "1.txt": b"a caption",
        "sound.bin": b"RIFF\0\0\0\0WAVEfmt ",
        "weights.pt": b"PK\3\4rest",
    }
    for place in everywhere(tmp_path, memory, files):
        assert names(place) == ["1.jfif", "2", "3.download", "4.gif"]
        assert len(read_images(place, size=8, channels=3)) == 4
        assert passed_over(place) == "1 zip archives (weights.pt), 1 no pictures (sound.bin), 1 text (1.txt)"


def test_a_picture_of_a_kind_that_is_not_read_is_refused_without_its_ending(tmp_path: Path, paint: Paint) -> None:
    """Oracle: the rule for messages: nothing is left out in silence."""
    fill(tmp_path, {"a.png": encode(paint(1)), "IMG_2": encode(paint(2), "GIF"), "IMG_3.heics": b"\0\0\0\x18ftypheic" + bytes(20)})
    with pytest.raises(UserError, match=r"2 of 3 files cannot be read: IMG_2 \(not a PNG, JPEG or WebP image\), IMG_3\.heics"):
        read_images(str(tmp_path), size=8, channels=3)


def test_masks_and_thumbnails_beside_pictures_are_not_trained_on(tmp_path: Path, memory: str, paint: Paint) -> None:
    """The names that OneTrainer, sd-scripts, kohya_ss, cloneofsimo/lora, EveryDream2, NAS and web servers give them."""
    own = ["a.jpg", "b.png", "c/d.webp", "e/images/1.png", "kohya/img/10_her face/h.jpg", "zundamon/x.png"]
    masks = ["a-masklabel.png", "a-condlabel.png", "b_mask.png", "b.mask.png", "b-depth.png", "c/masks/d.png", "conditioning/b.png"]
    masks += ["e/mask/1.png", "zundamon_mask/x.png", "a.mask", "kohya/masked_loss/h.jpg", "kohya/mask-img/10_her face/h.png"]
    small = ["a_thumb.jpg", "b-150x150.png", "thumb_b.png", "c/thumbnails/d.webp"]
    system = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._a.jpg", "Thumbs.db", "c/desktop.ini"]
    hidden = [".thumbnails/a.jpg", ".DS_Store"]
    files = {name: encode(paint(index)) for index, name in enumerate([*own, *masks, *small, *system, *hidden])}
    for place in everywhere(tmp_path, memory, files):
        assert names(place) == own
        said = passed_over(place)
        for count, kind in ((12, "masks or conditioning images"), (4, "thumbnails")):
            assert f"{count} {kind} (" in said, said
        assert "@eaDir" in said or "._a" in said
        assert "hidden" in said


def test_what_only_sounds_like_a_mask_is_a_picture(tmp_path: Path, paint: Paint) -> None:
    """Carnival masks, classes called mask, and sizes in names: no picture of that name stands beside them."""
    own = [
        "lone.mask",
        "red_mask.png",
        "mask.png",
        "masks/venice.png",
        "masks/10_x/3.png",
        "10_y/4.png",
        "mask/1.png",
        "face/1.png",
        "poster-100x200.png",
        "thumb_war.jpg",
    ]
    fill(tmp_path, {name: encode(paint(index)) for index, name in enumerate(own)})
    assert set(names(tmp_path)) == set(own)
    assert passed_over(str(tmp_path)) == ""


def test_linked_folders_are_followed_once(tmp_path: Path, paint: Paint) -> None:
    """Loops end, and what is reached twice is read once."""
    album = fill(tmp_path / "album", {"1.png": encode(paint(1)), "below/2.png": encode(paint(2))})
    here = fill(tmp_path / "here", {"3.png": encode(paint(3))})
    (here / "friends").symlink_to(album)
    (here / "again").symlink_to(album)
    (album / "below" / "up").symlink_to(album)
    (here / "self").symlink_to(here)
    (here / "one.png").symlink_to(album / "1.png")
    assert names(here) == ["3.png", "again/1.png", "again/below/2.png", "one.png"]
    assert "3 links to folders already read (again/below/up, friends, self)" in passed_over(str(here))


def test_shards_are_one_data_set(tmp_path: Path, memory: str, paint: Paint) -> None:
    """Oracle: the encoded bytes, shard by shard in natural order, however many; as one of them alone."""
    contents = [encode(paint(seed)) for seed in range(11)]
    for root in (f"file://{tmp_path}", memory):
        for index, content in enumerate(contents):
            put(f"{root}/set/data/train-{index}-of-11.parquet", parquet(image=pa.array([content])))
        put(f"{root}/set/README.md", b"words")
        assert [picture.content for picture in pictures(f"{root}/set")] == contents
        assert passed_over(f"{root}/set") == "1 text (README.md)"
    assert names(tmp_path / "set")[10] == "data/train-10-of-11.parquet row 0"
    put(f"file://{tmp_path}/set/data/train-11.parquet", parquet(label=pa.array([1])))
    with pytest.raises(UserError, match=r"train-11\.parquet: no column holds images"):
        names(tmp_path / "set")


def test_tables_beside_pictures_are_named(tmp_path: Path, paint: Paint) -> None:
    fill(tmp_path, {"a.png": encode(paint(1)), "metadata.parquet": parquet(text=pa.array(["x"]))})
    assert names(tmp_path) == ["a.png"]
    assert passed_over(str(tmp_path)) == "1 Parquet files (metadata.parquet)"


def test_the_column_is_named_where_several_hold_images(tmp_path: Path, paint: Paint) -> None:
    """Oracle: the encoded bytes of the column that was asked for; one line where none is and no name is usual."""
    one, two = encode(paint(1)), encode(paint(2))
    place = str(tmp_path / "edits.parquet")
    Path(place).write_bytes(parquet(before=pa.array([one]), after=pa.array([two])))
    with pytest.raises(UserError, match=r"2 columns hold images \(before, after\); .*, PLACE\?column=before say, is right"):
        list(pictures(place))
    assert [picture.content for picture in pictures(f"{place}?column=after")] == [two]
    with pytest.raises(UserError, match=r"no column 'later' with images; one of them by name"):
        list(pictures(f"{place}?column=later"))
    (tmp_path / "edits").mkdir()
    (tmp_path / "edits.parquet").rename(tmp_path / "edits" / "0.parquet")
    assert [picture.content for picture in pictures(f"{tmp_path}/edits?column=after")] == [two]
    (tmp_path / "usual.parquet").write_bytes(parquet(conditioning_image=pa.array([one]), image=pa.array([two])))
    assert [picture.content for picture in pictures(f"{tmp_path}/usual.parquet")] == [two]
    assert passed_over(f"{tmp_path}/usual.parquet") == "1 columns of images (conditioning_image)"


def test_the_first_row_may_be_empty(tmp_path: Path, paint: Paint) -> None:
    """Oracle: a column is told by the first value that there is."""
    table = {"drawn": pa.array([None, encode(paint(1))]), "embedding": pa.array([b"\0\1", b"\2\3"])}
    (tmp_path / "x.parquet").write_bytes(parquet(**table))
    with pytest.raises(UserError, match=r"1 of 2 files cannot be read: row 0 \(holds no bytes\)"):
        read_images(str(tmp_path / "x.parquet"), size=8, channels=3)


def test_an_archive_is_told_by_its_content(tmp_path: Path, paint: Paint) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.png", encode(paint(1)))
    (tmp_path / "album.cbz").write_bytes(content.getvalue())
    pq.write_table(pa.table({"image": pa.array([encode(paint(2))])}), tmp_path / "table")
    assert names(tmp_path / "album.cbz") == ["a.png"]
    assert names(tmp_path / "table") == ["row 0"]


def test_a_folder_without_pictures_says_what_it_holds(tmp_path: Path) -> None:
    fill(tmp_path, {"all.zip": b"PK\3\4", "a.txt": b"words"})
    (tmp_path / "all.zip").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"holds no pictures \(passed over: 1 zip archives \(all\.zip\), 1 text \(a\.txt\)\)"):
        names(tmp_path)
