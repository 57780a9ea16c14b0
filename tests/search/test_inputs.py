"""What a sweep began with, and what has changed since: on disk, at a URL and in an S3 bucket."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from fewshot_ray.data import inputs as files
from fewshot_ray.errors import UserError
from fewshot_ray.search.inputs import INPUTS_RECORD, check_inputs
from fewshot_ray.search.job import Job
from fewshot_ray.search.opened import Opened, planned_sweep, put_on_record
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.inputs import inputs_of
from tests.cli.conftest import write_pictures, write_pipeline
from tests.cluster.conftest import sweep_file
from tests.search.synthetic import file, open_sweep


@pytest.fixture(params=["disk", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of inputs: `photos`, `held out`, `model` and `weights.pt`; and the sweep's folder, empty."""
    monkeypatch.setenv("FEWSHOT_RAY_CACHE", str(tmp_path / "cache"))
    write_pictures(tmp_path / "here" / "photos", 5)
    write_pictures(tmp_path / "here" / "held out", 3, first=10)
    write_pipeline(tmp_path / "here" / "model")
    (tmp_path / "here" / "weights.pt").write_bytes(b"some weights")
    if request.param == "disk":
        return str(tmp_path / "here")
    there = f"memory://{uuid4().hex}" if request.param == "memory" else f"{request.getfixturevalue('s3')}/{uuid4().hex}"
    for path in (tmp_path / "here").rglob("*"):
        if path.is_file():
            write(f"{there}/{path.relative_to(tmp_path / 'here')}", path.read_bytes())
    return there


def write(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as opened:
        opened.write(content)


def read(url: str) -> bytes:
    with fsspec.open(url, "rb") as opened:
        content: bytes = opened.read()
        return content


def remove(url: str) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.rm(path, recursive=True)


def begun(place: str, tmp_path: Path) -> Opened:
    """A sweep on these, with a trial begun."""
    document = sweep_file("begun", tmp_path / "sweeps")
    tree: dict[str, Any] = {**document.tree, "source": {"model": f"{place}/model"}}
    tree["target"] = {"images": f"{place}/photos", "holdout": f"{place}/held out"}
    tree["evaluate"] = {**tree["evaluate"], "lpips_weights": f"{place}/weights.pt"}
    opened = put_on_record(planned_sweep(Document(tree, "begun.yaml")))
    opened.folder.trial("t0000").write_text("spec.yaml", "")
    return opened


def checked(opened: Opened) -> list[str]:
    return check_inputs(opened.folder.folder, opened.document.tree)


def test_unchanged_inputs_are_not_read_again(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: sizes and times suffice: reading a file would fail."""
    opened = begun(place, tmp_path)
    monkeypatch.setattr(files, "_sha256", None)
    assert checked(opened) == []
    record = json.loads(opened.folder.folder.read_text(INPUTS_RECORD))
    assert {field: len(one["files"]) for field, one in record.items()} == {
        "source.model": 4,
        "target.images": 5,
        "target.holdout": 3,
        "evaluate.lpips_weights": 1,
    }


def test_a_copy_is_the_same(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: contents are the same, only times differ (what `launch` sends, a restored backup); with the new times on record unread."""
    opened = begun(place, tmp_path)
    for name in ("photos/2.webp", "weights.pt", "model/model_index.json"):
        content = read(f"{place}/{name}")
        remove(f"{place}/{name}")
        write(f"{place}/{name}", content)
        if "://" not in place:
            os.utime(f"{place}/{name}", (1, 1))
    assert checked(opened) == []
    put_on_record(opened)
    monkeypatch.setattr(files, "_sha256", None)
    assert checked(opened) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: remove(f"{p}/photos/2.webp"), "target.images .*: 2.webp removed; as it was"),
        (lambda p: write(f"{p}/photos/new.png", read(f"{p}/photos/holiday 0.png")), "target.images .*: new.png added; as it was"),
        (lambda p: write(f"{p}/held out/12.webp", read(f"{p}/held out/holiday 10.png")), "target.holdout .*: 12.webp changed; as it was"),
        (lambda p: write(f"{p}/weights.pt", b"SOME weights"), "evaluate.lpips_weights .*: the file has changed; as it was"),
        (
            lambda p: write(f"{p}/model/scheduler/scheduler_config.json", b"{}"),
            "source.model .*: scheduler/scheduler_config.json changed; as it was",
        ),
    ],
    ids=["removed", "added", "changed", "of the same size", "the source"],
)
def test_a_difference_is_refused_by_name(change: Any, message: str, place: str, tmp_path: Path) -> None:
    """Oracle: the files by hand; by all who train, and the record stays as it was."""
    opened = begun(place, tmp_path)
    before = opened.folder.folder.read_bytes(INPUTS_RECORD)
    change(place)
    if "://" not in place:
        os.utime(f"{place}/weights.pt", (1, 1))  # written twice within a tick of the disk's clock
    for look in (checked, put_on_record):
        with pytest.raises(UserError, match=message):
            look(opened)
    assert opened.folder.folder.read_bytes(INPUTS_RECORD) == before


def test_many_differences_are_one_line(tmp_path: Path, place: str) -> None:
    """Oracle: three of a kind are named, the others counted."""
    opened = begun(place, tmp_path)
    for number in range(7):
        write(f"{place}/photos/more{number}.png", read(f"{place}/photos/holiday 0.png"))
    remove(f"{place}/photos/2.webp")
    with pytest.raises(UserError, match=r"more0\.png, more1\.png, more2\.png and 4 more added, 2\.webp removed; as it was[^\n]*$"):
        checked(opened)


def test_what_is_missing_is_one_warning(place: str, tmp_path: Path) -> None:
    """Oracle: the line has both; what is missing stays on record."""
    opened = begun(place, tmp_path)
    before = json.loads(opened.folder.folder.read_text(INPUTS_RECORD))
    remove(f"{place}/held out")
    remove(f"{place}/weights.pt")
    (warning,) = checked(opened)
    assert "target.holdout (there is no such file or folder)" in warning
    assert "evaluate.lpips_weights (" in warning
    put_on_record(opened)
    assert json.loads(opened.folder.folder.read_text(INPUTS_RECORD)) == before


def test_without_a_record_there_is_one_warning(place: str, tmp_path: Path) -> None:
    """Oracle: a sweep whose record was lost, or of which a hash was: by hand. It is put on record as it is now."""
    opened = begun(place, tmp_path)
    record = json.loads(opened.folder.folder.read_text(INPUTS_RECORD))
    record["target.images"]["files"][0] |= {"sha256": None, "modified": "another", "etag": None}
    opened.folder.folder.write_text(INPUTS_RECORD, json.dumps(record))
    (warning,) = checked(opened)
    assert "target.images (2.webp: without a hash on record)" in warning
    opened.folder.folder.remove(INPUTS_RECORD)
    (warning,) = checked(opened)
    assert "has no inputs.json" in warning
    put_on_record(opened)
    assert checked(opened) == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"target.images": 1}', '{"a": {"place": "b", "files": [{"name": 1}]}}'])
def test_a_damaged_record_is_one_line(text: str, tmp_path: Path) -> None:
    """Oracle: UserError with the file's name."""
    opened = put_on_record(planned_sweep(sweep_file("begun", tmp_path)))
    opened.folder.trial("t0000").write_text("spec.yaml", "")
    opened.folder.folder.write_text(INPUTS_RECORD, text)
    with pytest.raises(UserError, match=r"begun/inputs\.json: no record of a sweep's inputs"):
        checked(opened)


def test_before_the_first_trial_nothing_is_compared(place: str, tmp_path: Path) -> None:
    """Oracle: the record follows the images until a trial has seen them."""
    opened = begun(place, tmp_path)
    (opened.folder.folder / "trials").remove()
    remove(f"{place}/photos/2.webp")
    assert checked(opened) == []
    put_on_record(opened)
    opened.folder.trial("t0000").write_text("spec.yaml", "")
    assert checked(opened) == []


def test_every_place_is_an_input(tmp_path: Path) -> None:
    """Oracle: the fields of docs/file-format.md that name a file or folder to read."""
    tree = {
        "source": {"adm": {"weights": "a.pt"}, "gan": {"fastgan": {"weights": "g.pt"}}, "model": "m", "images": "s"},
        "target": {"images": "i", "holdout": "h", "test": "t"},
        "evaluate": {"extractor_weights": "e", "lpips_weights": "l", "inception_weights": "n", "dinov2_weights": "d", "clip_weights": "c"},
        "method": {"sadm": {"encoder_weights": "w", "encoder": "inception"}, "ant": "search"},
    }
    found = {one.field: (one.place, one.is_source) for one in inputs_of(tree)}
    assert found == {
        "source.model": ("m", True),
        "source.images": ("s", False),
        "source.adm.weights": ("a.pt", True),
        "source.gan.fastgan.weights": ("g.pt", True),
        "target.images": ("i", False),
        "target.holdout": ("h", False),
        "target.test": ("t", False),
        "evaluate.extractor_weights": ("e", False),
        "evaluate.lpips_weights": ("l", False),
        "evaluate.inception_weights": ("n", False),
        "evaluate.dinov2_weights": ("d", False),
        "evaluate.clip_weights": ("c", False),
        "method.sadm.encoder_weights": ("w", False),
    }
    assert [one.field for one in inputs_of({"source": {"images": "generated"}, "target": {"holdout": 3}})] == []


def test_of_an_encoders_folder_only_what_is_read_counts(tmp_path: Path) -> None:
    """Oracle: what transformers reads; notes and what a file manager or a download leaves there change no result."""
    for name in ("config.json", "model.safetensors", "README.md", ".DS_Store", ".cache/huggingface/model.safetensors.metadata"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (one,) = inputs_of({"method": {"sadm": {"encoder_weights": str(tmp_path)}}})
    listed = one.look()
    assert listed is not None
    assert set(listed.files) == {"config.json", "model.safetensors"}


def test_it_is_asked_before_each_trial(tmp_path: Path) -> None:
    """Oracle: images that change while a sweep runs: the trial after the change isn't begun, and the sweep ends with the line."""
    sweep = open_sweep(Folder(tmp_path), file())
    first = sweep.next_job()
    assert isinstance(first, Job)
    sweep.concurrent = 2

    def refuse() -> None:
        raise UserError("target.images isn't what it was")

    sweep.may_begin = refuse
    with pytest.raises(UserError, match=r"target\.images"):
        sweep.next_job()
    assert [record.id for record in sweep.folder.trials()] == [first.id]
