"""The commands with places that are relative, of one's home, and of variables; oracle: the files where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.launch.package import pack
from fewshot_ray.search.opened import planned_sweep, put_on_record
from fewshot_ray.search.sweep_folder import read_spec
from fewshot_ray.spec.document import read_document
from fewshot_ray.storage import Folder
from tests.cli.conftest import Command, Desk


@pytest.fixture
def study(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The desk's file with relative inputs, while somebody works in another folder."""
    desk.tree["source"]["model"] = "./model"
    desk.tree["target"]["images"] = "photos"
    desk.tree["storage"] = "sweeps"
    (desk.folder / "work").mkdir()
    monkeypatch.chdir(desk.folder / "work")
    monkeypatch.setenv("HOME", str(desk.folder))
    monkeypatch.setenv("STUDY", str(desk.folder))
    return desk


@pytest.mark.parametrize("file", ["../mine.yaml", "~/mine.yaml", "$STUDY/mine.yaml"])
def test_check_from_elsewhere(file: str, study: Desk, fewshot: Command) -> None:
    """Inputs are found beside the file, the storage is the working directory's."""
    study.write()
    answer = fewshot("check", file)
    assert answer.code == 0, answer.err
    assert "6 different ones" in answer.out
    assert f"{study.folder}/work/sweeps/mine can be written" in answer.out


def test_a_sweeps_spec_keeps_absolute_places(study: Desk) -> None:
    opened = put_on_record(planned_sweep(read_document(study.write())))
    spec = read_spec(Folder(opened.folder.folder.url)).tree
    assert spec["source"]["model"] == str(study.folder / "model")
    assert spec["target"]["images"] == str(study.folder / "photos")
    assert opened.folder.folder.url == str(study.folder / "work" / "sweeps" / "mine")


def test_launch_agrees(study: Desk, tmp_path: Path) -> None:
    """Oracle: the pictures beside the file are packed; those that aren't there are refused with where that is."""
    study.tree["source"]["model"] = "owner/name"
    (tmp_path / "package").mkdir()
    packed = pack(read_document(study.write()), tmp_path / "package")
    assert packed.tree["target"]["images"].startswith("packed://")
    assert packed.tree["source"]["model"] == "owner/name"
    assert len([path for path in (tmp_path / "package").rglob("*") if path.is_file()]) == 6
    study.tree["target"]["holdout"] = "held"
    with pytest.raises(UserError, match=rf"target\.holdout: held: there is no such file or folder \({study.folder}/held\)"):
        pack(read_document(study.write()), tmp_path / "again")
    study.tree["target"]["holdout"] = "/shared/by/the/cluster"
    pack(read_document(study.write()), tmp_path / "again")


def test_a_folder_in_the_working_directory_is_not_taken(study: Desk, fewshot: Command) -> None:
    """It was until now: the line says so."""
    study.tree["target"]["images"] = "ten"
    (study.folder / "work" / "ten").mkdir()
    answer = fewshot("check", study.write())
    assert answer.code == 2
    assert (
        f"target.images: ten: there is no such file or folder ({study.folder}/ten), and {study.folder}/work/ten isn't meant" in answer.err
    )
