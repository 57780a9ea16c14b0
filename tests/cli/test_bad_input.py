"""Whatever is wrong with what a user brings: one line on standard error, exit code 2, and all their files as they were."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file, save_file

from fewshot_ray.cli import main
from fewshot_ray.search.sweep_folder import sweep_text
from fewshot_ray.spec.document import read_document
from tests.cli.conftest import Answer, Command, Desk, write_pictures, write_pipeline

Break = Callable[[Desk], None]
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


def one_line(answer: Answer) -> str:
    """The line, of an answer that is one and nothing else."""
    assert answer.code == 2, answer
    assert re.fullmatch(r"error: [^\n]+\n", answer.err), answer.err
    assert "Traceback" not in answer.out
    return answer.err


def section(name: str, **values: Any) -> Break:
    """Other values in a section of the file; `method`'s are replaced."""

    def change(desk: Desk) -> None:
        desk.tree[name] = values if name == "method" else {**desk.tree.get(name, {}), **values}

    return change


def missing_folder(desk: Desk) -> None:
    desk.tree["target"]["images"] = str(desk.folder / "fotos")


def empty_folder(desk: Desk) -> None:
    (desk.folder / "nothing").mkdir()
    desk.tree["target"]["images"] = str(desk.folder / "nothing")


def folder_is_a_picture(desk: Desk) -> None:
    desk.tree["target"]["images"] = str(desk.folder / "photos" / "holiday 0.png")


def truncated_jpeg(desk: Desk) -> None:
    path = desk.folder / "photos" / "IMG_1.JPG"
    path.write_bytes(path.read_bytes()[:-300])


def text_called_png(desk: Desk) -> None:
    (desk.folder / "photos" / "notes.png").write_text("milk, eggs")


def file_is_a_folder(desk: Desk) -> None:
    (desk.folder / "photos" / "album.png").mkdir()
    (desk.folder / "photos" / "album.png" / "notes.png").write_text("milk, eggs")


def bad_test_images(desk: Desk) -> None:
    desk.tree["target"]["test"] = str(desk.folder / "tset")


def test_images_are_the_shots(desk: Desk) -> None:
    desk.tree["target"]["test"] = desk.tree["target"]["images"]


def too_few_final_samples(desk: Desk) -> None:
    write_pictures(desk.folder / "test", 3, first=20)
    desk.tree["target"]["test"] = str(desk.folder / "test")
    desk.tree["evaluate"] |= {"metrics": ["holdout_loss", "pairwise_distance"], "samples": 8, "final_samples": 1}


def one_test_image(desk: Desk) -> None:
    write_pictures(desk.folder / "test", 1, first=20)
    desk.tree["target"]["test"] = str(desk.folder / "test")
    desk.tree["evaluate"] |= {"metrics": ["holdout_loss", "fd"], "samples": 8}


def bad_source_images(desk: Desk) -> None:
    desk.tree["source"]["images"] = str(desk.folder / "sources")


def other_model(**changes: Any) -> Break:
    def change(desk: Desk) -> None:
        write_pipeline(desk.folder / "other", **changes)
        desk.tree["source"]["model"] = str(desk.folder / "other")

    return change


def no_model(desk: Desk) -> None:
    desk.tree["source"]["model"] = str(desk.folder / "photos")


def other_scheduler(desk: Desk) -> None:
    FlowMatchEulerDiscreteScheduler().save_pretrained(desk.folder / "model" / "scheduler")


def text_to_image(desk: Desk) -> None:
    path = desk.folder / "model" / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "StableDiffusionPipeline"}))


def missing_weight(desk: Desk) -> None:
    weights = load_file(str(desk.folder / WEIGHTS))
    save_file({name: tensor for name, tensor in weights.items() if name != "conv_in.bias"}, str(desk.folder / WEIGHTS))


def extra_weight(desk: Desk) -> None:
    weights = load_file(str(desk.folder / WEIGHTS))
    save_file({**weights, "conv_in.gain": weights["conv_in.bias"].clone()}, str(desk.folder / WEIGHTS))


def weight_of_another_shape(desk: Desk) -> None:
    weights = load_file(str(desk.folder / WEIGHTS))
    save_file({**weights, "conv_in.bias": weights["conv_in.bias"][:3].clone()}, str(desk.folder / WEIGHTS))


def cut_weights(desk: Desk) -> None:
    path = desk.folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:1000])


def no_weights(desk: Desk) -> None:
    (desk.folder / WEIGHTS).unlink()


def storage_below_a_file(desk: Desk) -> None:
    (desk.folder / "diary").write_text("dear")
    desk.tree["storage"] = str(desk.folder / "diary" / "sweeps")


def storage_is_a_file(desk: Desk) -> None:
    (desk.folder / "diary").write_text("dear")
    desk.tree["storage"] = str(desk.folder / "diary")


def sweep_is_a_file(desk: Desk) -> None:
    (desk.folder / "sweeps").mkdir()
    (desk.folder / "sweeps" / "mine").write_text("dear")


def storage_in_proc(desk: Desk) -> None:
    desk.tree["storage"] = "/proc/sweeps"


def something_else_in_the_sweeps_place(desk: Desk) -> None:
    (desk.folder / "sweeps" / "mine").mkdir(parents=True)
    (desk.folder / "sweeps" / "mine" / "thesis.tex").write_text("abstract")


def another_spec(desk: Desk) -> None:
    """A sweep that has a trial; before its first the file may still be put right."""
    sweep = desk.folder / "sweeps" / "mine"
    (sweep / "trials" / "t0000").mkdir(parents=True)
    text = sweep_text(read_document(desk.write()))
    (sweep / "spec.yaml").write_text(text.replace("batch_size: 4", "batch_size: 2"))


def missing_weights_file(desk: Desk) -> None:
    desk.tree["evaluate"] |= {"metrics": ["holdout_loss", "fd"], "samples": 8, "extractor_weights": str(desk.folder / "inception.pth")}


def own_extractor(desk: Desk) -> None:
    desk.tree["evaluate"] |= {"metrics": ["holdout_loss", "kid"], "samples": 8, "extractor": "no_such_module:features"}


def missing_lpips_weights(desk: Desk) -> None:
    desk.tree["evaluate"] |= {"metrics": ["holdout_loss", "pairwise_lpips"], "samples": 8, "lpips_weights": str(desk.folder / "vgg.pth")}


CASES: dict[str, tuple[Break, str]] = {
    "missing folder": (missing_folder, r"fotos: there is no such file or folder"),
    "empty folder": (empty_folder, r"nothing: holds no pictures"),
    "folder is a picture": (folder_is_a_picture, r"is a single file"),
    "fewer images than shots": (section("target", shots=7), r"target\.shots: 7 are asked for, but there are 6"),
    "more folds than images": (section("target", holdout={"crossfit": 9}), r"crossfit 9 does not fit 6 shots; 2 \.\. 6"),
    "truncated JPEG": (truncated_jpeg, r"1 of 6 files cannot be read: IMG_1\.JPG \("),
    "text called .png": (text_called_png, r"notes\.png \(not a PNG, JPEG or WebP image\)"),
    "file is a folder": (file_is_a_folder, r"album\.png/notes\.png"),
    "missing test images": (bad_test_images, r"tset: there is no such"),
    "test images are the shots": (test_images_are_the_shots, r"target\.test: every image"),
    "too few final samples": (too_few_final_samples, r"evaluate\.final_samples: 1 are too few for pairwise_distance; 2 or more"),
    "too few test images": (one_test_image, r"target\.test: 1 images are left.*fd needs 2"),
    "missing source images": (bad_source_images, r"sources: there is no such"),
    "4 channels": (other_model(in_channels=4, out_channels=4), r"4 channels cannot be trained on pictures; 1 \(grey\) or 3"),
    "neither mean nor variance": (other_model(out_channels=5), r"3 channels in and 5 out"),
    "a size that can't be halved": (other_model(sample_size=15), r"can't take the 3x15x15 images"),
    "unknown prediction type": (other_model(prediction_type="noise"), r"prediction_type 'noise'"),
    "no pipeline": (no_model, r"photos has no model_index\.json"),
    "a scheduler of another theory": (other_scheduler, r"FlowMatchEulerDiscreteScheduler, which isn.t supported"),
    "unsupported pipeline": (text_to_image, r"StableDiffusionPipeline, which isn't supported; one of DDPMPipeline"),
    "missing weight": (missing_weight, r"1 missing keys, first conv_in\.bias"),
    "extra weight": (extra_weight, r"1 unexpected keys, first conv_in\.gain"),
    "weight of another shape": (weight_of_another_shape, r"conv_in\.bias"),
    "cut weights": (cut_weights, r"weights in .* can't be read"),
    "no weights": (no_weights, r"weights in .* can't be read"),
    "digits' network on photographs": (
        section("evaluate", metrics=["holdout_loss", "fd"], samples=8, extractor="digits"),
        r"'digits' reads 1x8x8 images",
    ),
    "missing Inception weights": (missing_weights_file, r"inception\.pth: there is no such file"),
    "missing VGG weights": (missing_lpips_weights, r"vgg\.pth: there is no such file"),
    "more sampler steps than timesteps": (section("evaluate", samples=8, sampler_steps=2000), r"sampler_steps: 2000"),
    "unknown method": (section("method", sdtf={}), r"method\.sdtf: .*did you mean sdft"),
    "unknown metric": (section("evaluate", metrics=["holdout_los"]), r"did you mean holdout_loss"),
    "unknown key": (section("train", batch=4), r"train\.batch: .*`batch_size: 4` is right"),
    "unknown key of a method": (section("method", sdft={"lambda": 1}), r"method\.sdft\.lambda"),
    "own extractor that can't be imported": (own_extractor, r"evaluate\.extractor: no_such_module:features can't be imported"),
    "unknown extractor": (section("evaluate", extractor="clipp"), r"evaluate\.extractor: .*did you mean clip"),
    "sweep's storage is below a file": (storage_below_a_file, r"storage .*cannot"),
    "sweep's storage is a file": (storage_is_a_file, r"storage .*cannot"),
    "sweep is a file": (sweep_is_a_file, r"storage .*cannot"),
    "storage in /proc": (storage_in_proc, r"storage /proc/sweeps.*cannot"),
    "something else in the sweep's place": (something_else_in_the_sweeps_place, r"holds something else"),
    "another spec": (another_spec, r"holds another spec \(it differs in train\.batch_size\); another name"),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", CASES)
def test_one_line_and_nothing_lost(case: str, command: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: hashes of everything in the user's folder, before and after; `run` stops before it starts Ray or makes a folder."""
    change, right = CASES[case]
    change(desk)
    desk.write()
    before = desk.contents()
    line = one_line(fewshot(command, desk.file))
    assert re.search(right, line), line
    assert desk.contents() == before
    assert not Path("/proc/sweeps").exists()


TEXTS = {
    "low above high": ("lr: {log: [1e-3, 1e-4]}", r"line 5: train\.lr: .*low"),
    "log range at 0": ("lr: {log: [0, 1e-4]}", r"line 5: train\.lr: .*0"),
    "a key twice": ("lr: 1e-4, lr: 1e-3", r"line 5.*lr.*twice|line 5.*duplicate"),
    "not a number": ("lr: fast", r"line 5: train\.lr: 'fast' is not a number"),
    "a negative number": ("lr: -1", r"train\.lr: -1"),
    "no steps": ("steps: 0", r"train\.steps: 0"),
    "not YAML": ("lr: [", r"line \d+"),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", TEXTS)
def test_what_is_written_wrong_is_named_with_its_line(case: str, command: str, desk: Desk, fewshot: Command) -> None:
    text, right = TEXTS[case]
    photos, model = desk.folder / "photos", desk.folder / "model"
    desk.file.write_text(
        f"name: mine\nsource: {{model: {model}}}\ntarget: {{images: {photos}}}\nmethod: {{sdft: {{}}}}\ntrain: {{{text}}}\n"
    )
    before = desk.contents()
    line = one_line(fewshot(command, desk.file))
    assert line.startswith(f"error: {desk.file}, line") or str(desk.file) in line
    assert re.search(right, line), line
    assert desk.contents() == before


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_file_that_is_none(command: str, desk: Desk, fewshot: Command) -> None:
    assert "no such file" in one_line(fewshot(command, desk.folder / "nothere.yaml"))
    assert "is a folder" in one_line(fewshot(command, desk.folder / "photos"))
    assert "holiday 0.png" in one_line(fewshot(command, desk.folder / "photos" / "holiday 0.png"))


@pytest.mark.parametrize("command", [["resume"], ["leaderboard"], ["export", "out"]])
def test_a_sweep_that_is_none(command: list[str], desk: Desk, fewshot: Command) -> None:
    name, *rest = command
    before = desk.contents()
    for place in ("nothere", "photos", "photos/holiday 0.png", "model"):
        line = one_line(fewshot(name, desk.folder / place, *(desk.folder / part for part in rest)))
        assert "no sweep there" in line
    assert desk.contents() == before


@pytest.mark.parametrize("command", [["resume"], ["leaderboard"], ["export", "out"], ["evaluate"]])
def test_a_sweep_whose_spec_is_no_text(command: list[str], desk: Desk, fewshot: Command) -> None:
    name, *rest = command
    (desk.folder / "photos" / "holiday 0.png").rename(desk.folder / "photos" / "spec.yaml")
    before = desk.contents()
    assert "spec.yaml: is no text" in one_line(fewshot(name, desk.folder / "photos", *(desk.folder / part for part in rest)))
    assert desk.contents() == before


@pytest.mark.parametrize("name", ["two\nlines.png", "\x1b[31mred.png", "\u2028.png", "half \udcfc.png"])
def test_a_name_that_would_steer_the_terminal_stays_in_its_line(name: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: printable characters alone; what is said of a picture that is read goes to standard output."""
    (desk.folder / "photos" / name).write_text("milk, eggs")
    line = one_line(fewshot("check", desk.write()))
    assert line.rstrip("\n").isprintable()
    assert "not a PNG, JPEG or WebP image" in line


def test_a_name_that_is_no_text_can_be_said(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a pipe for output, as a process opens it; a small picture is a finding, which names it."""
    (desk.folder / "photos" / "logo3.png").rename(desk.folder / "photos" / "caf\udce9.png")
    Image.new("RGB", (3, 2)).save(desk.folder / "photos" / "t\udcfcr.png")
    monkeypatch.setattr(sys, "argv", ["fewshot-ray", "check", str(desk.write())])
    pipe = io.BytesIO()
    with io.TextIOWrapper(pipe, encoding="utf-8", errors="strict") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(SystemExit) as ended:
            main()
        out.flush()
        assert ended.value.code in (None, 0)
        assert rb"t\udcfcr.png: 3x2 is smaller" in pipe.getvalue()
