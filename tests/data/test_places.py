"""Folders, zips and Parquet files, on disk and at a URL, hold the same pictures."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewshot_ray.data.digits import digits
from fewshot_ray.data.images import read_images
from fewshot_ray.data.places import picture_files, pictures
from fewshot_ray.data.selection import natural_order
from fewshot_ray.errors import UserError

from .conftest import Paint, encode


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("nested")
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def parquet(**columns: pa.Array) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


def put(url: str, content: bytes) -> str:
    with fsspec.open(url, "wb") as file:
        file.write(content)
    return url


@pytest.fixture
def files(paint: Paint) -> dict[str, bytes]:
    """Three pictures and everything that is to be passed over."""
    return {
        "img10.png": encode(paint(10)),
        "img2.PNG": encode(paint(2)),
        "nested/deep [1]/img*.webp": encode(paint(3), "WEBP"),
        "notes.txt": b"words",
        ".hidden.png": b"not read",
        "nested/.cache/x.png": b"not read",
        "__MACOSX/._img2.png": b"not read",
        ".DS_Store": b"",
    }


NAMES = ["img2.PNG", "img10.png", "nested/deep [1]/img*.webp"]


def test_folder_and_zip_on_disk_and_at_a_url_are_the_same(tmp_path: Path, memory: str, files: dict[str, bytes]) -> None:
    """Oracle: the encoded bytes that were written; all four places give them in one order."""
    for name, content in files.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        put(f"{memory}/folder/{name}", content)
    (tmp_path / "pictures.ZIP").write_bytes(zipped(files))
    put(f"{memory}/pictures.zip", zipped(files))
    expected = [(name, files[name], "") for name in NAMES]
    places = [f"{tmp_path}/folder", f"{tmp_path}/pictures.ZIP", f"{memory}/folder", f"{memory}/folder/", f"{memory}/pictures.zip"]
    for place in [*places, f"file://{tmp_path}/folder"]:
        assert [tuple(picture) for picture in pictures(place)] == expected


def test_relative_and_home_folders(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ten").mkdir()
    (tmp_path / "ten" / "img2.png").write_bytes(files["img2.PNG"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("ten", "./ten", "ten/", "~/ten"):
        assert [picture.name for picture in pictures(place)] == ["img2.png"]


def test_parquet_columns_are_found(tmp_path: Path, memory: str, paint: Paint) -> None:
    """Oracle: the encoded bytes that were written, in the order of the rows."""
    contents = [encode(paint(2)), encode(paint(1), "JPEG")]
    structs = pa.array([{"bytes": content, "path": f"{index}.png"} for index, content in enumerate(contents)])
    tables = {
        "binary": parquet(label=pa.array([1, 2]), data=pa.array(contents)),
        "large": parquet(data=pa.array(contents, pa.large_binary())),
        "struct": parquet(caption=pa.array(["a", "b"]), picture=structs),
        "named": parquet(mask=pa.array([b"\x89PNGmask", b"x"]), image=pa.array(contents)),
        "sniffed": parquet(embedding=pa.array([b"\0\1", b"\2\3"]), drawn=pa.array(contents)),
    }
    for name, table in tables.items():
        for place in (put(f"{memory}/{name}.parquet", table), put(f"file://{tmp_path}/{name}.parquet", table)):
            assert [picture.content for picture in pictures(place)] == contents, name
    assert [picture.name for picture in pictures(f"{memory}/struct.parquet")] == ["row 0 (0.png)", "row 1 (1.png)"]
    assert len(read_images(f"{memory}/struct.parquet", size=8, channels=3)) == 2


def test_parquet_without_images_lists_its_columns(memory: str, paint: Paint) -> None:
    place = put(f"{memory}/x.parquet", parquet(label=pa.array([1]), caption=pa.array(["a"])))
    with pytest.raises(UserError, match=r"no column holds images \(columns: label: int64, caption: string\); a binary column"):
        list(pictures(place))
    place = put(f"{memory}/null.parquet", parquet(image=pa.array([encode(paint(1)), None])))
    with pytest.raises(UserError, match=r"1 of 2 files cannot be read: row 1 \(holds no bytes\)"):
        read_images(place, size=8, channels=3)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing", "there is no such file or folder"),
        ("missing.zip", "there is no such file or folder"),
        ("empty", "holds no pictures"),
        ("text", "holds no pictures"),
        ("one.png", "is a single file"),
        ("bad.zip", "no readable zip archive"),
        ("bad.parquet", "cannot be read"),
        ("empty.zip", "holds no pictures"),
    ],
)
def test_what_is_not_there_or_damaged_gets_one_line(tmp_path: Path, memory: str, place: str, message: str, paint: Paint) -> None:
    (tmp_path / "empty").mkdir()
    for root in (f"file://{tmp_path}", memory):
        put(f"{root}/one.png", encode(paint(1)))
        put(f"{root}/bad.zip", b"not a zip")
        put(f"{root}/bad.parquet", b"not parquet")
        put(f"{root}/empty.zip", zipped({"notes.txt": b""}))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("words")
    for root in (str(tmp_path), memory):
        if root == memory and place in ("empty", "text"):
            continue
        with pytest.raises(UserError, match=message) as caught:
            read_images(f"{root}/{place}", size=8, channels=3)
        assert "\n" not in str(caught.value)
        assert place in str(caught.value)


def test_an_unknown_protocol_gets_one_line() -> None:
    with pytest.raises(UserError, match="images nowhere://x: cannot be read"):
        list(pictures("nowhere://x"))


def test_damaged_and_encrypted_zip_entries_are_named(tmp_path: Path, paint: Paint) -> None:
    whole = zipped({"a.png": encode(paint(1)), "b.png": encode(paint(2))})
    start = whole.index(b"a.png") + 200
    (tmp_path / "damaged.zip").write_bytes(whole[:start] + bytes(40) + whole[start + 40 :])
    with pytest.raises(UserError, match=r"1 of 2 files cannot be read: a.png \(damaged in the archive"):
        read_images(str(tmp_path / "damaged.zip"), size=8, channels=3)
    flagged = bytearray(whole)
    flagged[whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1) + 8] |= 1
    (tmp_path / "encrypted.zip").write_bytes(bytes(flagged))
    with pytest.raises(UserError, match="is encrypted"):
        read_images(str(tmp_path / "encrypted.zip"), size=8, channels=3)


def test_pipes_and_dangling_links_are_named_and_not_waited_for(tmp_path: Path, paint: Paint) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(encode(paint(1)))
    os.mkfifo(tmp_path / "photos" / "pipe.png")
    (tmp_path / "photos" / "self.png").symlink_to("self.png")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    with pytest.raises(UserError, match=r"2 of 3 files .*: pipe\.png \(no ordinary file\), self\.png \(no ordinary file\)"):
        read_images(str(tmp_path / "photos"), size=8, channels=3)
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(UserError, match=r"pipe\.zip: cannot be read \(no ordinary file\)"):
        read_images(str(tmp_path / "pipe.zip"), size=8, channels=3)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_damaged_entry_is_named_however_it_is_packed(method: int, tmp_path: Path, paint: Paint) -> None:
    """Oracle: the rule for messages, or the picture as it was; every byte of the packed one is flipped in turn."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", encode(paint(1, 8, 8)))
    whole = path.read_bytes()
    expected = read_images(str(path), size=8, channels=3)
    refusals = []
    for at in range(30 + len("a.png"), whole.index(b"PK\1\2")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            assert read_images(str(path), size=8, channels=3).hashes == expected.hashes
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert all("a.png (" in refusal and "\n" not in refusal for refusal in refusals)


def test_a_struct_in_a_struct_holds_no_images(memory: str, paint: Paint) -> None:
    place = put(f"{memory}/x.parquet", parquet(image=pa.array([{"bytes": {"bytes": encode(paint(1))}}])))
    with pytest.raises(UserError, match="no column holds images"):
        list(pictures(place))


def test_embedded_digits_are_read_as_pictures() -> None:
    """Oracle: the arrays themselves; a picture of the model's size is not touched."""
    read = read_images("embedded://digits/shots?seed=3", size=8, channels=1)
    assert read.images.equal(digits("shots", 3).images)
    assert read.names[4].endswith("class4.png")
    assert read_images("embedded://digits/shots", size=16, channels=3).images.shape == (10, 3, 16, 16)
    source = read_images("embedded://digits/source", size=8, channels=1)
    assert len(source.distinct()) == 1000


@pytest.mark.parametrize("place", ["embedded://digits/shots?sed=1", "embedded://faces/shots", "embedded://digits/shots?seed=-1"])
def test_wrong_embedded_places_are_refused(place: str) -> None:
    with pytest.raises(UserError, match=r"embedded://digits/shots\?seed=0"):
        list(pictures(place))


def test_natural_order() -> None:
    names = ["b.png", "10.png", "A2.png", "a10.png", "a1/2.png", "9.png"]
    assert sorted(names, key=natural_order) == ["9.png", "10.png", "a1/2.png", "A2.png", "a10.png", "b.png"]


@pytest.mark.parametrize("name", ["a::b", "zip::mine", "file::x", "s3::"])
@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_two_colons_in_a_name_on_disk(kind: str, name: str, files: dict[str, bytes], tmp_path: Path) -> None:
    """To fsspec they join two places. Oracle: the pictures as they were put there."""
    place = tmp_path / name / "x::y"
    content = files["img2.PNG"]
    if kind == "folder":
        place.mkdir(parents=True)
        (place / "a::1.png").write_bytes(content)
    else:
        place.parent.mkdir()
        place.write_bytes(zipped({"a::1.png": content}) if kind == "zip" else parquet(image=pa.array([content])))
    for url in (str(place), f"file://{place}"):
        assert [picture.content for picture in pictures(url)] == [content]
        listed = picture_files(url)
        assert listed is not None
        assert len(listed.files) == 1


def test_a_file_within_an_archive_is_still_read(files: dict[str, bytes], tmp_path: Path) -> None:
    """Oracle: fsspec's chained URLs, which have a protocol in front."""
    (tmp_path / "all.zip").write_bytes(zipped({"below/img.png": files["img2.PNG"]}))
    assert [picture.content for picture in pictures(f"zip://below::{tmp_path}/all.zip")] == [files["img2.PNG"]]
