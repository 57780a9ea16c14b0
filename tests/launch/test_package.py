"""What leaves the laptop with a launch, and what the cluster reads of it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from fewshot_ray.cli.launched import check_versions, received, request_at
from fewshot_ray.data.places import pictures
from fewshot_ray.errors import UserError
from fewshot_ray.launch import package
from fewshot_ray.launch.package import check_storage, pack, store
from fewshot_ray.launch.submission import REQUEST, write_request
from fewshot_ray.launch.versions import code, different, versions
from fewshot_ray.search.opened import planned_sweep
from fewshot_ray.search.sweep_folder import SPEC
from fewshot_ray.spec.document import Document, read_document, to_yaml
from fewshot_ray.spec.validate import file_spec
from fewshot_ray.storage import Folder

FILE = """\
name: sent
source: {model: "embedded://digits-ddpm"}
target:
  images: %s
method: {finetune: {}}
train: {lr: {log: [1e-5, 1e-4]}}
storage: %s
"""


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (8, 8), shade).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "ten"
    for number in range(3):
        path = folder / ("below" if number == 2 else ".") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return folder


def document(tmp_path: Path, images: object, storage: str = "memory://package") -> Document:
    path = tmp_path / "sent.yaml"
    path.write_text(FILE % (images, storage))
    return read_document(path)


def arrived(packed: Document, folder: Path) -> Document:
    """As the cluster reads it."""
    (folder / SPEC).write_text(to_yaml(packed.tree))
    there, files = received({"name": packed.name, "lines": dict(packed.lines)}, folder)
    store(files, file_spec(there))
    return there


def sent(tmp_path: Path, name: str, images: object, storage: str = "memory://package") -> tuple[Document, Path]:
    folder = tmp_path / name
    folder.mkdir()
    return arrived(pack(document(tmp_path, images, storage), folder), folder), folder


def test_images_arrive_and_nothing_else(images: Path, tmp_path: Path) -> None:
    """Oracle: the cluster's pictures are the laptop's, by name and byte; no other file of the folder has left."""
    before = [(picture.name, picture.content) for picture in pictures(str(images))]
    (images / "passwords.txt").write_text("secret")
    (images / ".hidden.png").write_bytes(png(9))
    there, folder = sent(tmp_path, "package", images)
    place = there.tree["target"]["images"]
    assert place.startswith("memory://package/sent/inputs/")
    assert [(picture.name, picture.content) for picture in pictures(place)] == before
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["0.png", "1.png", "2.png", SPEC]
    assert there.tree["source"] == {"model": "embedded://digits-ddpm"}
    assert there.tree["train"] == document(tmp_path, images).tree["train"]
    assert str(there.error("target.images", "is wrong")).startswith(f"{tmp_path}/sent.yaml, line 4: target.images")


def test_the_same_images_are_the_same_place(images: Path, tmp_path: Path) -> None:
    """Oracle: launched again a file is the same file, with another picture it is not."""
    first = sent(tmp_path, "one", images)[0].tree
    assert sent(tmp_path, "two", images)[0].tree == first
    (images / "0.png").write_bytes(png(100))
    assert sent(tmp_path, "three", images)[0].tree != first


def test_the_plan_is_made_before_anything_is_stored(images: Path, tmp_path: Path) -> None:
    """Oracle: the plan that is made with the images in the sweep's folder, to which a link of the shared disk leads."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "shared").symlink_to(tmp_path / "disk")
    (tmp_path / "package").mkdir()
    packed = pack(document(tmp_path, images, f"{tmp_path}/shared"), tmp_path / "package")
    (tmp_path / "package" / SPEC).write_text(to_yaml(packed.tree))
    there, files = received({"name": packed.name, "lines": dict(packed.lines)}, tmp_path / "package")
    before = planned_sweep(there)
    assert not list((tmp_path / "disk").iterdir())
    store(files, before.file)
    assert [picture.content for picture in pictures(before.file.target.images)] == [png(number) for number in range(3)]
    assert planned_sweep(there).document.tree == before.document.tree


def test_a_check_stores_nothing(images: Path, tmp_path: Path) -> None:
    """Oracle: the pictures are read where they arrived, and the storage stays empty."""
    (tmp_path / "package").mkdir()
    packed = pack(document(tmp_path, images, "memory://checked"), tmp_path / "package")
    (tmp_path / "package" / SPEC).write_text(to_yaml(packed.tree))
    there, _ = received({"name": "x", "lines": {}}, tmp_path / "package", stays=True)
    assert [picture.content for picture in pictures(there.tree["target"]["images"])] == [png(number) for number in range(3)]
    assert Folder("memory://checked").names() == []


def test_a_zip_goes_as_it_is(images: Path, tmp_path: Path) -> None:
    """Oracle: its pictures."""
    import shutil

    archive = shutil.make_archive(str(tmp_path / "ten"), "zip", images)
    there, _ = sent(tmp_path, "package", archive)
    assert {picture.content for picture in pictures(there.tree["target"]["images"])} == {png(number) for number in range(3)}


def test_places_elsewhere_stay(tmp_path: Path) -> None:
    """Oracle: the file's own."""
    there, folder = sent(tmp_path, "package", "s3://bucket/images")
    assert there.tree["target"]["images"] == "s3://bucket/images"
    assert [path.name for path in folder.iterdir()] == [SPEC]


def test_what_is_not_sent(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the rule for messages: the line in the file, and what would be right."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"line 4: target.images: .*holds no PNG, JPEG"):
        pack(document(tmp_path, tmp_path / "empty"), tmp_path / "a")
    with_model = document(tmp_path, images)
    with_model.tree["source"]["model"] = str(images)
    with pytest.raises(UserError, match=r"source.model: .* lies on this machine; a place that the cluster can read"):
        pack(with_model, tmp_path / "b")
    monkeypatch.setattr(package, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"target.images: .* too large to be sent .*; copied to storage once"):
        pack(document(tmp_path, images), tmp_path / "c")
    local = document(tmp_path, images, "runs")
    with pytest.raises(UserError, match=r"line 7: storage: runs is a folder of this machine; .*s3://bucket/sweeps"):
        check_storage(local, file_spec(local))


@pytest.mark.parametrize("name", ["../secret", "/etc", "0123456789abcdef/../../secret"])
def test_a_place_that_only_a_launch_may_name(name: str, tmp_path: Path) -> None:
    """Oracle: refused on either side, and nothing beside the package is read."""
    (tmp_path / "secret").mkdir()
    with pytest.raises(UserError, match="is what a launch makes of a folder"):
        pack(document(tmp_path, f"packed://{name}"), tmp_path / "package")
    (tmp_path / "package").mkdir()
    with pytest.raises(UserError, match="hasn't arrived"):
        arrived(document(tmp_path, f"packed://{name}"), tmp_path / "package")


def test_pictures_that_are_not_read_go_too(images: Path, tmp_path: Path) -> None:
    """Oracle: the cluster refuses what this machine would, instead of training on fewer images."""
    (images / "photo.HEIC").write_bytes(b"heic")
    there, _ = sent(tmp_path, "package", images)
    assert [picture.name for picture in pictures(there.tree["target"]["images"]) if picture.problem] == ["photo.HEIC"]


def test_what_is_sent_is_what_a_run_reads(images: Path, tmp_path: Path) -> None:
    """Oracle: the pictures of the same place here, by name and byte: links followed, masks left, endings not believed."""
    (images / "3.jfif").write_bytes(png(30))
    (images / "0-masklabel.png").write_bytes(png(255))
    (images / "1_mask.png").write_bytes(png(255))
    (images / "1.txt").write_text("a caption")
    (images / "@eaDir").mkdir()
    (images / "@eaDir" / "0.png").write_bytes(png(1))
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "4.png").write_bytes(png(40))
    (images / "linked").symlink_to(tmp_path / "album")
    (images / "linked" / "loop").symlink_to(images)
    before = [(picture.name, picture.content) for picture in pictures(str(images))]
    assert [name for name, _ in before] == ["0.png", "1.png", "3.jfif", "below/2.png", "linked/4.png"]
    there, folder = sent(tmp_path, "package", images)
    assert [(picture.name, picture.content) for picture in pictures(there.tree["target"]["images"])] == before
    assert len([path for path in folder.rglob("*") if path.is_file()]) == len(before) + 1
    assert sent(tmp_path, "by its URL", f"file://{images}")[0].tree == there.tree
    with pytest.raises(UserError, match=r"line 4: target\.images: file:///nowhere/ten: there is no such file"):
        planned_sweep(document(tmp_path, "file:///nowhere/ten"))


def test_what_stays_here_is_said_here(images: Path, tmp_path: Path) -> None:
    """Oracle: the file that was put beside the pictures, which a run on the cluster never sees."""
    said: list[str] = []
    pack(document(tmp_path, images), tmp_path / "one", said.append)
    assert said == []
    (images / "1_mask.png").write_bytes(png(255))
    pack(document(tmp_path, images), tmp_path / "two", said.append)
    assert said == ["target.images: passed over: 1 masks or conditioning images (1_mask.png)"]


def test_shards_and_their_column_are_sent(tmp_path: Path) -> None:
    """Oracle: the bytes of the column that is named."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "shards").mkdir()
    for index in range(2):
        table = {"before": pa.array([png(index)]), "after": pa.array([png(index + 10)])}
        pq.write_table(pa.table(table), tmp_path / "shards" / f"{index}.parquet")
    there, _ = sent(tmp_path, "package", f"{tmp_path}/shards?column=after")
    assert there.tree["target"]["images"].endswith("?column=after")
    assert [picture.content for picture in pictures(there.tree["target"]["images"])] == [png(10), png(11)]


def test_versions(tmp_path: Path) -> None:
    """Oracle: equal to themselves; one that differs is named with both sides, and how to mend it."""
    write_request(tmp_path, {"command": "run", "versions": versions(), "code": code()})
    sent = request_at(tmp_path / REQUEST)
    check_versions(sent["versions"], sent["code"])
    with pytest.raises(UserError, match=r"torch 1\.0 on the laptop, .* on the cluster\).*constraints\.txt"):
        check_versions({**versions(), "torch": "1.0"}, code())


def test_modules() -> None:
    """Oracle: what the laptop has must be there as it is; what the cluster has besides is nobody's."""
    mine = code()
    assert {"__init__.py", "launch/versions.py"} <= mine.keys()
    assert different(versions(), {name: mine[name] for name in list(mine)[1:]}) == []
    assert different(versions(), {**mine, "launch/versions.py": "0"}) == ["fewshot-ray's launch/versions.py"]
    assert different(versions(), {**mine, "search/jobs.py": "0", "zoo.py": "0"}) == ["fewshot-ray's search/jobs.py and 1 more"]
    now_a_module = {name: content for name, content in mine.items() if not name.startswith("trial/")} | {"trial.py": "0"}
    hidden, changed = different(versions(), now_a_module)
    assert hidden == "fewshot-ray's trial.py, which an older folder trial/ hides there"
    assert changed == "fewshot-ray's trial.py"


def test_a_request_of_an_older_release(tmp_path: Path) -> None:
    """Oracle: what it has and the cluster hasn't is named, as any other version."""
    write_request(tmp_path, {"command": "run", "versions": {**versions(), "fewshot-ray's code": "0"}})
    sent = request_at(tmp_path / REQUEST)
    with pytest.raises(UserError, match="fewshot-ray's code 0 on the laptop, none on the cluster"):
        check_versions(sent["versions"], sent["code"])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"command": "run"}', '{"command": "run", "versions": 3}', "\x00"])
def test_no_request(content: str, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    (tmp_path / REQUEST).write_text(content)
    with pytest.raises(UserError, match="no request of `fewshot-ray launch`"):
        request_at(tmp_path / REQUEST)
