"""`evaluate` of images and of pipelines, without a sweep."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fewshot_ray.data.digits import digits
from fewshot_ray.metrics import METRICS, load_extractor
from fewshot_ray.metrics.fidelity import frechet_distance, kernel_distance
from tests.cli.conftest import Answer, Command, Desk, write_pictures
from tests.cli.test_bad_input import one_line

MODEL = "embedded://digits-ddpm"
SHOTS, VALIDATION, TEST = (f"embedded://digits/{part}" for part in ("shots", "validation", "test"))
GIVEN = ("--target", SHOTS, "--holdout", VALIDATION)
ROW = re.compile(r"^(\w+) [↓↑] +(\S+)(?: +(\S+) \.\. (\S+))?", re.MULTILINE)


def write_digits(folder: Path, images: Tensor, name: str = "{:04d}") -> Path:
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{name.format(index)}.png")
    return folder


def written(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


def values(answer: Answer) -> dict[str, float]:
    return {name: one["value"] for name, one in written(answer)["metrics"].items()}


def test_the_models_own_samples_measure_as_the_model(tmp_path: Path, fewshot: Command) -> None:
    """Oracle: the same numbers of the pipeline and of the folder that `sample` draws from it, whose grid is passed over."""
    assert fewshot("sample", MODEL, tmp_path / "drawn", "-n", 40, "--steps", 5, "--seed", 3).code == 0
    of_model = written(fewshot("evaluate", MODEL, *GIVEN, "--json", "-", "-n", 40, "--steps", 5, "--seed", 3))
    of_images = written(fewshot("evaluate", tmp_path / "drawn", *GIVEN, "--json", "-"))
    assert (of_model["kind"], of_images["kind"]) == ("pipeline", "images")
    loss = of_model["metrics"].pop("holdout_loss")
    bands = [of_model["metrics"].pop(f"loss_{band}")["value"] for band in ("coarse", "content", "cleanup")]
    assert min(bands) < loss["value"] < max(bands)
    assert loss["interval"]["low"] < loss["value"] < loss["interval"]["high"]
    assert {"kid", "pairwise_distance", "memorisation"} <= of_model["metrics"].keys()
    for name, one in of_model["metrics"].items():
        assert one["value"] == of_images["metrics"][name]["value"]
        assert one["stamp"] == of_images["metrics"][name]["stamp"] | {"seed": 3, "sampler": "ddim", "sampler_steps": 5}
    assert any("grid.png is passed over" in line for line in of_images["warnings"])


def test_values_are_the_metrics_own(fewshot: Command) -> None:
    """Oracle: the function tested on its own, over features taken directly."""
    found = written(fewshot("evaluate", TEST, "--holdout", VALIDATION, "--metrics", "kid", "-n", 100, "--json", "-"))
    features = load_extractor("digits", device="cpu").features
    expected = kernel_distance(features(digits("test").images[:100]), features(digits("validation").images))
    assert found["metrics"]["kid"]["value"] == pytest.approx(expected.value, rel=1e-9)
    assert found["metrics"]["kid"]["stamp"] == {
        "protocol": "clean",
        "n_generated": 100,
        "n_real": 200,
        "extractor": "digit-network-64",
        "extractor_weights": load_extractor("digits", device="cpu").weights_hash,
        "resize": "none",
    }
    assert (found["target"], found["holdout"]) == (None, VALIDATION)


def test_the_table_says_what_the_json_has(tmp_path: Path, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the JSON, to the digits of the table; in sections by what is compared with; each setting is in the foot."""
    monkeypatch.setenv("COLUMNS", "100")
    answer = fewshot("evaluate", TEST, *GIVEN, "--json", tmp_path / "deep" / "it.json")
    found = json.loads((tmp_path / "deep" / "it.json").read_text())["metrics"]
    assert set(found) == set(METRICS) & {*found} >= {"fd", "kid", "coverage", "intra_distance", "memorisation", "pairwise_distance"}
    shown = {name: rest for name, *rest in ROW.findall(answer.out)}
    assert shown.keys() == found.keys()
    for name, (value, low, high) in shown.items():
        assert float(value) == pytest.approx(found[name]["value"], rel=1e-3)
        interval = found[name]["interval"]
        assert (float(low), float(high)) == pytest.approx((interval["low"], interval["high"]), rel=1e-3)
    headings = [answer.out.index(text) for text in ("against held-out", "generated images alone", "against the images", "copies of")]
    assert headings == sorted(headings)
    assert answer.out.index("coverage") < headings[1] < answer.out.index("pairwise_distance") < headings[2]
    for name in found:
        assert all(str(setting) in answer.out for setting in found[name]["stamp"].values())


@pytest.mark.parametrize("columns", [80, 48])
def test_the_table_fits_the_terminal(columns: int, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the widths of the lines; no metric's name is cut off."""
    monkeypatch.setenv("COLUMNS", str(columns))
    answer = fewshot("evaluate", TEST, *GIVEN, "-n", 60)
    assert answer.code == 0
    assert max(len(line) for line in answer.out.splitlines()) <= columns
    assert "pairwise_distance" in answer.out


def test_values_do_not_depend_on_the_images_order(tmp_path: Path, fewshot: Command) -> None:
    """Oracle: the same images under names in the opposite order, in all three places; intervals too."""
    parts = {"generated": digits("test").images[:80], "shots": digits("shots").images, "validation": digits("validation").images[:60]}
    answers = []
    for order, turned in (("there", False), ("back", True)):
        places = [write_digits(tmp_path / order / name, images.flip(0) if turned else images) for name, images in parts.items()]
        answers.append(written(fewshot("evaluate", places[0], "--target", places[1], "--holdout", places[2], "--json", "-"))["metrics"])
    assert answers[0].keys() == answers[1].keys()
    for name, one in answers[0].items():
        other = answers[1][name]
        assert one["value"] == pytest.approx(other["value"], rel=1e-6), name
        assert_same_interval(one["interval"], other["interval"])


def assert_same_interval(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert (one["low"], one["high"]) == pytest.approx((other["low"], other["high"]), rel=1e-3)
    assert one["method"] == other["method"]


def test_copies_are_shown_with_what_they_are_copies_of(tmp_path: Path, fewshot: Command) -> None:
    """Oracle: three shots put among real digits: the strip's pixels, their names, a ratio of 0; a Wilson interval of their share."""
    shots, fresh = digits("shots").images, digits("validation").images[100:160]
    place = write_digits(tmp_path / "generated", torch.cat([fresh, shots[[4, 1, 7]]]))
    strip = tmp_path / "worst.png"
    answer = fewshot("evaluate", place, "--target", SHOTS, "--holdout", TEST, "--copies", strip, "--json", "-")
    copies = written(answer)["copies"]
    assert [one["generated"] for one in copies["worst"][:3]] == ["0060.png", "0061.png", "0062.png"]
    assert [one["ratio"] for one in copies["worst"][:3]] == pytest.approx([0, 0, 0], abs=1e-5)
    assert [one["training"].split("class")[1] for one in copies["worst"][:3]] == ["4.png", "1.png", "7.png"]
    ratios = [one["ratio"] for one in copies["worst"]]
    assert ratios[3:] == sorted(ratios[3:])
    assert ratios[3] > 0.1
    pixels = np.asarray(Image.open(strip).convert("L"))
    upper, lower = np.split(pixels[2 : 2 + 2 * 66], 2)
    assert pixels.shape == (2 + 2 * 66, 2 + 8 * 66)
    assert np.array_equal(upper[:, : 2 + 3 * 66], lower[:, : 2 + 3 * 66])
    assert np.array_equal(upper[:64:8, 2:66:8], shots[4, 0])
    assert not np.array_equal(upper, lower)


def test_only_what_the_given_images_allow_is_measured(fewshot: Command) -> None:
    """Oracle: what each metric compares with; nothing that is meaningless with ten real images is measured unasked."""
    expected = {
        (): ["pairwise_distance"],
        ("--target", SHOTS): ["pairwise_distance", "intra_distance"],
        ("--holdout", SHOTS): ["kid", "pairwise_distance"],
        ("--holdout", VALIDATION): ["fd", "kid", "precision", "recall", "density", "coverage", "pairwise_distance"],
    }
    for given, names in expected.items():
        found = written(fewshot("evaluate", TEST, *given, "--json", "-", "-n", 100))
        assert list(found["metrics"]) == names
        assert found["warnings"] == []


def test_a_meaningless_value_is_warned_of(fewshot: Command) -> None:
    """Oracle: a line each on standard error and in the JSON, which names what means something."""
    answer = fewshot("evaluate", VALIDATION, "--holdout", SHOTS, "--metrics", "fd,coverage,kid", "--json", "-")
    found = written(answer)
    warned = [line for line in answer.err.splitlines() if line.startswith("warning: ")]
    assert [line.removeprefix("warning: ") for line in warned] == found["warnings"]
    assert "fd: 10 held-out images" in warned[0]
    assert "kid doesn't depend on their number" in warned[0]
    assert "coverage: the balls around 10 held-out images" in warned[1]


def test_images_trained_on_are_taken_out_of_the_held_out_ones(tmp_path: Path, fewshot: Command) -> None:
    """Oracle: the numbers in the stamps: a held-out place with two of the photographs, one saved anew as JPEG; all of them are refused."""
    write_pictures(tmp_path / "photos", 6)
    write_pictures(tmp_path / "others", 8, first=10)
    write_pictures(tmp_path / "generated", 20, first=30)
    Image.open(tmp_path / "photos" / "palette4.png").convert("RGB").save(tmp_path / "others" / "again.jpg", quality=90)
    shutil.copy(tmp_path / "photos" / "2.webp", tmp_path / "others" / "copy.webp")
    for folder in (tmp_path / "generated").iterdir():
        with Image.open(folder) as image:
            image.convert("RGB").resize((8, 8)).convert("L").save(folder.with_suffix(".png"))
        if folder.suffix != ".png":
            folder.unlink()
    given = (
        "evaluate",
        tmp_path / "generated",
        "--target",
        tmp_path / "photos",
        "--metrics",
        "kid",
        "--json",
        "-",
        "--extractor",
        "digits",
    )
    assert "reads 1x8x8 images, not 3x8x8" in one_line_of(fewshot(*given, "--extractor", "digits", "--holdout", tmp_path / "others"))
    for folder in ("photos", "others"):
        for path in (tmp_path / folder).iterdir():
            Image.open(path).convert("L").convert("RGB").save(path.with_suffix(".grey.png"))
            path.unlink()
    found = written(fewshot(*given, "--extractor", "digits", "--holdout", tmp_path / "others"))
    assert found["metrics"]["kid"]["stamp"]["n_real"] == 8
    assert found["warnings"][0] == "--holdout: 2 of 10 images are also in --target and are left out"
    assert "all of its 6 images are in --target too" in one_line_of(
        fewshot(*given, "--extractor", "digits", "--holdout", tmp_path / "photos")
    )


def one_line_of(answer: Answer) -> str:
    """The error of a command that has told what it did before."""
    told = answer.err.splitlines()
    errors = [line for line in told if not re.match(r"\d\d:\d\d:\d\d ", line)]
    return one_line(Answer(answer.code, answer.out, "\n".join(errors) + "\n"))


def mixed(folder: Path) -> Path:
    write_digits(folder, digits("test").images[:3])
    Image.new("L", (9, 7)).save(folder / "other.png")
    return folder


BAD: dict[str, tuple[tuple[object, ...], str]] = {
    "nothing there": (("nothere",), "nothing is there; a sweep's folder, images"),
    "a single file": (("one/0000.png",), "is a single file"),
    "an empty folder": (("empty",), "holds no pictures"),
    "no image": (("broken",), r"1 of 2 files cannot be read: text\.png"),
    "mixed sizes": (("mixed",), r"of 2 sizes \(3 of 8x8, 1 of 9x7\); images of one size, or --size SIDE"),
    "one image": (("one",), "one generated image; two or more"),
    "one sample": ((MODEL, "-n", 1), "one generated image; two or more"),
    "identical images": (("same",), "all 5 generated images are the same"),
    "fewer than asked": (("some", "-n", 50), "--number 50: .* holds 12 images"),
    "no real images": (("some", "--metrics", "kid"), "kid compares with images never trained on; --holdout PLACE"),
    "no shots": (("some", "--metrics", "modes"), "modes compares with the images trained on; --target PLACE"),
    "no calibration": (("some", "--metrics", "memorisation", "--target", SHOTS), "memorisation compares .* --holdout PLACE"),
    "copies of nothing": (("some", "--copies", "x.png", "--metrics", "pairwise_distance"), "--copies: .*--target PLACE"),
    "copies of nothing, unasked": (("some", "--copies", "x.png"), "--copies: .*--target PLACE"),
    "copies as text": (("some", "--copies", "x.txt"), r"ends in \.png"),
    "the loss of images": (("some", "--metrics", "holdout_loss", *GIVEN), "measured on a model, not on its images; a pipeline"),
    "a loss relative to nothing": (
        (MODEL, "--metrics", "relative_content", *GIVEN),
        "relative to a sweep's source model; one of loss_coarse, loss_content",
    ),
    "a GAN's metric": ((MODEL, "--metrics", "path_uniformity"), "measured on gan models, which .* isn't"),
    "unknown metric": (("some", "--metrics", "kidd"), r"--metrics: there is no 'kidd'.*\(did you mean kid\?\)"),
    "no metric": (("some", "--metrics", " , "), "names none"),
    "unknown protocol": (("some", "--protocol", "fsg"), r"--protocol: there is no 'fsg'; .*\(did you mean fsig\?\)"),
    "a target set without shots": (
        ("some", "--protocol", "fsig", "--metrics", "fd", "--holdout", VALIDATION),
        "the images trained on; --target",
    ),
    "an extractor that fails half-way": (
        ("some", "--extractor", "own_networks:fails", "--holdout", VALIDATION),
        "own_networks:fails fails on",
    ),
    "features that are no numbers": (
        ("some", "--extractor", "own_networks:nan"),
        "own_networks:nan gives NaN or infinite features for 12 of",
    ),
    "nonsense for features": (("some", "--extractor", "own_networks:nonsense"), "own_networks:nonsense gives str"),
    "no such callable": (("some", "--extractor", "own_networks:missing"), "own_networks:missing can't be imported"),
    "unknown extractor": (("some", "--extractor", "digit"), "--extractor: there is no 'digit'.*did you mean digits"),
    "too few real images": (("some", "--metrics", "coverage", "--holdout", "one"), "coverage over 1 held-out images; 4 or more"),
    "too few samples": (("some", "-n", 5, "--metrics", "intra_distance", "--target", SHOTS), "--number: 5 are too few"),
    "real images that repeat one": (("some", "--metrics", "kid", "--holdout", "same"), "kid over 1 held-out images; 2 or more"),
    "a sampler of images": (("some", "--sampler", "ddim"), "--sampler: is for a model, and these are images"),
    "a seed of images": (("some", "--seed", 1), "--seed: is for a model"),
    "a size of a model": ((MODEL, "--size", 8), "--size: isn't for a pipeline"),
    "a trial of images": (("some", "--trial", "t0000"), "--trial: is one of a sweep's"),
    "too many steps": ((MODEL, "--steps", 5000), "--steps 5000: the model has 1000 timesteps"),
    "unknown network of LPIPS": (("some", "--lpips-network", "vgg19"), "--lpips-network vgg19: not known; vgg or alex or squeeze"),
    "weights that aren't there": (
        ("some", "--metrics", "sfid", "--holdout", TEST, "--inception-weights", "none.pth"),
        r"none\.pth: these weights cannot be read",
    ),
    "unknown sampler": ((MODEL, "--sampler", "euler"), "--sampler euler: not known"),
    "guidance without classes": ((MODEL, "--guidance-scale", 2), "--guidance-scale 2: .* has no classes"),
    "a folder for the JSON": (("some", "--json", "some"), "--json .*some: is a folder"),
    "a file for the JSON's folder": (("some", "--json", "some/0000.png/x.json"), "0000.png"),
}


OWN = """
import torch
calls = []
def fails(images):
    calls.append(len(images))
    if len(calls) > 1:
        raise RuntimeError("no more")
    return images.flatten(1).float()
def nan(images):
    return images.flatten(1).float() * float("nan")
def nonsense(images):
    return "features"
def pixels(images):
    return images.flatten(1).float() / 255
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)
    images = digits("test").images
    write_digits(tmp_path / "some", images[:12])
    write_digits(tmp_path / "one", images[:1])
    write_digits(tmp_path / "same", images[:1].expand(5, -1, -1, -1))
    write_digits(tmp_path / "broken", images[:1])
    (tmp_path / "broken" / "text.png").write_text("milk, eggs")
    (tmp_path / "empty").mkdir()
    mixed(tmp_path / "mixed")
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_one_line(case: str, folders: Path, fewshot: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the message, exit code 2, and no file written, new or old."""
    monkeypatch.chdir(folders)
    (folders / "out.json").write_text("earlier")
    before = sorted(folders.rglob("*"))
    arguments, message = BAD[case]
    out = () if "--json" in arguments else ("--json", folders / "out.json")
    assert re.search(message, one_line_of(fewshot("evaluate", *arguments, *out)))
    assert sorted(folders.rglob("*")) == before
    assert (folders / "out.json").read_text() == "earlier"


def test_ones_own_extractor_is_stamped(folders: Path, fewshot: Command) -> None:
    """Oracle: the distance of the pixels, taken directly; the stamp names the callable."""
    found = written(
        fewshot("evaluate", TEST, "--holdout", VALIDATION, "--extractor", "own_networks:pixels", "--metrics", "kid", "--json", "-")
    )
    one = found["metrics"]["kid"]
    x, y = (digits(part).images.flatten(1) / 255 for part in ("test", "validation"))
    assert one["value"] == pytest.approx(kernel_distance(x, y).value, rel=1e-6)
    assert (one["stamp"]["extractor"], one["stamp"]["resize"]) == ("own_networks:pixels", "its own")


def test_the_protocol_of_few_shot_image_generation(fewshot: Command) -> None:
    """Oracle: the distance to the whole target set, the shots among it; kid's reference is without them; it says what its papers do."""
    given = ("--target", SHOTS, "--holdout", "embedded://digits/target", "--metrics", "fd,kid,intra_distance", "-n", 600, "--json", "-")
    found = written(fewshot("evaluate", "embedded://digits/source", *given, "--protocol", "fsig-100"))
    features = load_extractor("digits", device="cpu").features
    samples, target = features(digits("source").images[:600]), features(digits("target").images)
    assert found["metrics"]["fd"]["value"] == pytest.approx(frechet_distance(samples, target), rel=1e-6)
    clean = values(fewshot("evaluate", "embedded://digits/source", *given))
    assert found["metrics"]["kid"]["value"] == clean["kid"]
    assert found["metrics"]["fd"]["value"] != pytest.approx(clean["fd"], rel=1e-6)
    assert found["metrics"]["fd"]["stamp"] | {"protocol": "fsig-100", "shots_in_reference": True} == found["metrics"]["fd"]["stamp"]
    assert found["metrics"]["intra_distance"]["stamp"]["intra_cap"] == 100
    assert found["metrics"]["intra_distance"]["value"] != clean["intra_distance"]
    assert any("fsig-100 is of 5000 generated images in its papers, and 600 are measured" in line for line in found["warnings"])
    assert any("in Inception's features in its papers, not digit-network-64's" in line for line in found["warnings"])


def test_images_of_several_sizes_are_brought_to_one_when_asked(folders: Path, fewshot: Command) -> None:
    """Oracle: the number of images; `mixed` alone is refused."""
    found = written(fewshot("evaluate", folders / "mixed", "--size", 8, "--json", "-"))
    assert found["metrics"]["pairwise_distance"]["stamp"]["n_generated"] == 4


def test_the_options_of_a_sweep_are_its_files(desk: Desk, fewshot: Command) -> None:
    """Oracle: one line for an option that a sweep's file decides on."""
    (desk.folder / "spec.yaml").write_text("")
    for option, value in {"--holdout": VALIDATION, "--metrics": "kid", "--number": 5, "--seed": 1}.items():
        line = one_line(fewshot("evaluate", desk.folder, option, value))
        assert f"{option}: is for images and pipelines; a sweep is measured as its file says" in line
