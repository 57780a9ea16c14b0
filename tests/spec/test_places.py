"""What places in a file mean: relative to the file, `~` and `$VAR`; oracle: where the files were put."""

from __future__ import annotations

from pathlib import Path

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import read_document
from fewshot_ray.spec.places import places
from fewshot_ray.spec.validate import file_spec
from fewshot_ray.trial.compose import absolute_places

FILE = """\
name: mine
source: {model: %s, images: %s}
target: {images: %s, holdout: %s, test: %s}
method: {sadm: {encoder_weights: %s}}
evaluate: {extractor_weights: %s, lpips_weights: %s}
storage: %s
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the file, another that is worked in, and a home."""
    for name in ("study", "work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.setenv("BUCKET", "pictures")
    monkeypatch.delenv("UNSET", raising=False)
    return tmp_path / "study"


def write(folder: Path, *values: str) -> Path:
    (folder / "mine.yaml").write_text(FILE % values)
    return folder / "mine.yaml"


def test_relative_to_the_file(study: Path) -> None:
    """Inputs to the file, storage to the working directory; a hub's id stays one."""
    values = ("./model", "pool", "ten", "../held", "sub/test.zip", "facebook/dinov2-base", "w/inception.pt", "./lpips.pt", "runs")
    tree = read_document(write(study, *values)).tree
    found = {place.path: place.value for place in places(tree)}
    assert found == {
        "source.model": f"{study}/model",
        "source.images": f"{study}/pool",
        "target.images": f"{study}/ten",
        "target.holdout": f"{study}/../held",
        "target.test": f"{study}/sub/test.zip",
        "method.sadm.encoder_weights": "facebook/dinov2-base",
        "evaluate.extractor_weights": f"{study}/w/inception.pt",
        "evaluate.lpips_weights": f"{study}/lpips.pt",
    }
    assert tree["storage"] == "runs"


def test_home_and_variables(study: Path) -> None:
    """In every place, of URLs and the storage too; a column stays behind its place."""
    values = ("~/model", "$DATA/pool", "'${DATA}/x.parquet?column=a'", "s3://$BUCKET/held", "generated", "~/dino", "~/i.pt", "$DATA/l")
    tree = read_document(write(study, *values, "~/runs")).tree
    home, data = study.parent / "home", study.parent / "data"
    assert tree["source"] == {"model": f"{home}/model", "images": f"{data}/pool"}
    assert tree["target"]["images"] == f"{data}/x.parquet?column=a"
    assert tree["target"]["holdout"] == "s3://pictures/held"
    assert tree["method"]["sadm"]["encoder_weights"] == f"{home}/dino"
    assert tree["evaluate"] == {"extractor_weights": f"{home}/i.pt", "lpips_weights": f"{data}/l"}
    assert tree["storage"] == f"{home}/runs"


def test_a_folder_beside_the_file_goes_before_a_hubs_id(study: Path) -> None:
    (study / "google" / "ddpm").mkdir(parents=True)
    tree = read_document(write(study, "google/ddpm", *["x"] * 7, "runs")).tree
    assert tree["source"]["model"] == f"{study}/google/ddpm"


def test_names_may_hold_what_would_be_expanded(study: Path) -> None:
    for name in ("$DATA", "~", "ten$UNSET"):
        (study / name).mkdir()
    tree = read_document(write(study, "x/y", "'$DATA'", "'~'", "ten$UNSET", *["x"] * 4, "runs")).tree
    assert [tree["source"]["images"], tree["target"]["images"], tree["target"]["holdout"]] == [
        f"{study}/{name}" for name in ("$DATA", "~", "ten$UNSET")
    ]


@pytest.mark.parametrize("place", ["$UNSET/ten", "s3://${UNSET}/ten"])
def test_a_variable_that_is_not_set(study: Path, place: str) -> None:
    """Oracle: the rule for messages."""
    document = read_document(write(study, "x/y", "x", f"'{place}'", *["x"] * 5, "runs"))
    with pytest.raises(UserError, match=r"line 3: target\.images: .* names \$\{?UNSET\}?, which isn't set"):
        file_spec(document)


def test_an_error_says_where_it_looked(study: Path) -> None:
    """With the folder that was taken until now, where one is there."""
    (study / "pool").mkdir()
    document = read_document(write(study, "x/y", "pool", "ten", *["x"] * 5, "runs"))
    with pytest.raises(UserError, match=rf"line 3: target\.images: ten: there is no such file or folder \({study}/ten\); a folder"):
        absolute_places(document, str(study / "runs" / "mine"))
    (study.parent / "work" / "ten").mkdir()
    with pytest.raises(UserError, match=rf"{study.parent}/work/ten isn't meant, since inputs are relative to the file"):
        absolute_places(document, str(study / "runs" / "mine"))


def test_a_file_by_its_home_or_a_link(study: Path) -> None:
    """A file is where it lies under the name that was given."""
    home = study.parent / "home"
    write(home, "./m", "p", *["x"] * 6, "runs")
    assert read_document("~/mine.yaml").tree["source"]["images"] == f"{home}/p"


def test_folders_of_the_metrics_networks_may_be_hub_ids(study: Path) -> None:
    """Oracle: by hand; a path that starts with a dot, or a folder that is there, is the file's neighbour."""
    (study / "mine" / "clip").mkdir(parents=True)
    text = "evaluate: {dinov2_weights: facebook/dinov2-base, clip_weights: mine/clip, inception_weights: w/i.pth}\n"
    (study / "mine.yaml").write_text(text)
    found = {place.path: place.value for place in places(read_document(study / "mine.yaml").tree)}
    assert found == {
        "evaluate.dinov2_weights": "facebook/dinov2-base",
        "evaluate.clip_weights": f"{study}/mine/clip",
        "evaluate.inception_weights": f"{study}/w/i.pth",
    }
