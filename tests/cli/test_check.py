"""`fewshot-ray check` on files that are right: what it finds, what it announces, and that it leaves nothing behind."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fewshot_ray.cli import cost
from fewshot_ray.methods import METHODS
from fewshot_ray.spec.document import parse_document, read_document
from fewshot_ray.storage import Folder
from fewshot_ray.trial.compose import check_document
from fewshot_ray.trial.diffusion import DiffusionMaterials
from fewshot_ray.trial.preflight import preset_materials
from fewshot_ray.writable import check_writable
from tests.cli.conftest import Command, Desk, painting, write_pipeline
from tests.cli.sweeping import finished_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"


def line(out: str, topic: str) -> str:
    return next(text for text in out.splitlines() if text.startswith(topic + " "))


def test_the_plan(desk: Desk, fewshot: Command) -> None:
    desk.tree["train"]["lr"] = {"log": [1e-4, 1e-3]}
    desk.tree["search"] |= {"trials": 7, "confirm": {"top": 2, "seeds": [1, 2], "plain": "tuned"}}
    desk.tree["resources"] = {"workers": 2}
    answer = fewshot("check", desk.write())
    assert answer.code == 0
    assert answer.err == ""
    assert "3 x 16 x 16" in line(answer.out, "model")
    assert "6 different ones; held out: 3 (fold-1-of-2), 3 (fold-2-of-2)" in line(answer.out, "images")
    assert line(answer.out, "range").endswith("train.lr: log 0.0001 .. 0.001")
    assert "7 trials and 4 reruns and 7 of plain fine-tuning by itself, then a refit on all images;" in answer.out
    assert "each 4 steps in 2 folds with 2 evaluations, on 2 workers" in answer.out
    assert re.search(r"at most about \d+ (s|min) with \d+ workers? at a time like this machine's [CG]PU", line(answer.out, "time"))
    assert re.search(r"at most \d+ MB", line(answer.out, "disk"))


def test_what_auto_will_do(desk: Desk, fewshot: Command) -> None:
    """Oracle: docs/clusters.md; it is for trials of one worker."""
    desk.tree["resources"] = {"cpus_per_worker": "auto"}
    said = line(fewshot("check", desk.write()).out, "packing")
    assert said.endswith("a core for each trial, one trial until it has been evaluated; then as many as there are cores and memory for")
    desk.tree["resources"] |= {"workers": 2}
    answer = fewshot("check", desk.write())
    assert answer.code == 2
    assert "resources.cpus_per_worker: 'auto' is for trials of one worker, and resources.workers is 2; a number is right" in answer.err


def test_findings_are_named(desk: Desk, fewshot: Command) -> None:
    """Told, not refused: all of them can be trained on."""
    photos = desk.folder / "photos"
    painting(0).save(photos / "copy of 0.png")
    painting(5).resize((200, 40)).save(photos / "banner.png")
    Image.new("RGB", (9, 12)).save(photos / "stamp.png")
    answer = fewshot("check", desk.write())
    assert answer.code == 0
    assert re.search(r"copy of 0\.png: is the same picture as|holiday 0\.png: is the same picture as copy of 0\.png", answer.out)
    assert "banner.png: 200x40 is longer than 2:1" in answer.out
    assert "stamp.png: 9x12 is smaller than the model's 16x16" in answer.out
    assert "8 different ones" in answer.out


def test_metrics_that_few_images_make_meaningless_are_warned_of(desk: Desk, fewshot: Command) -> None:
    """Oracle: ten held-out digits in 64 features; kid is what means something."""
    desk.tree["source"]["model"] = "embedded://digits-ddpm"
    desk.tree["target"] = {"images": "embedded://digits/shots", "holdout": "embedded://digits/shots?seed=1"}
    desk.tree["method"] = {"finetune": {}}
    desk.tree["evaluate"] |= {"samples": 8, "metrics": ["holdout_loss", "kid", "fd", "coverage"]}
    warned = [text for text in fewshot("check", desk.write()).out.splitlines() if text.startswith("warning ")]
    assert len(warned) == 2
    assert "evaluate.metrics: fd: 8 generated images give no covariance of 64 features" in warned[0]
    assert "evaluate.metrics: coverage: the balls around 10 held-out images" in warned[1]


def test_every_unreadable_file_is_found(desk: Desk, fewshot: Command) -> None:
    for number in range(5):
        (desk.folder / "photos" / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    answer = fewshot("check", desk.write())
    assert answer.code == 2
    assert all(f"broken{number}.jpg: cannot be read" in answer.out for number in range(5))
    assert "5 of 11 files" in answer.err


def test_nothing_is_left_behind(desk: Desk, fewshot: Command) -> None:
    """Oracle: hashes of everything in the user's folder; the storage's folders aren't there yet, or were there and stay."""
    desk.tree["storage"] = str(desk.folder / "a" / "b")
    desk.write()
    before = desk.contents()
    assert fewshot("check", desk.file).code == 0
    assert desk.contents() == before
    (desk.folder / "a").mkdir()
    assert fewshot("check", desk.file).code == 0
    assert desk.contents() == {**before, "a": "folder"}


def test_the_probe_of_a_remote_storage() -> None:
    folder = Folder("memory://probe/storage")
    check_writable(folder)
    assert folder.names() == []


def test_a_sweep_that_is_there_is_announced(desk: Desk, fewshot: Command) -> None:
    finished_sweep(desk)
    before = desk.contents()
    answer = fewshot("check", desk.file)
    assert "exists, `run` goes on with it" in line(answer.out, "storage")
    assert desk.contents() == before


def test_a_file_is_put_right_after_a_run_that_ended_before_its_first_trial(desk: Desk, fewshot: Command) -> None:
    """As with more GPUs than there are: the folder holds the spec and perhaps a cache."""
    from fewshot_ray.search.opened import planned_sweep, put_on_record

    desk.tree["resources"] = {"gpus_per_worker": 64}
    put_on_record(planned_sweep(read_document(desk.write())))
    del desk.tree["resources"]
    assert fewshot("check", desk.write()).code == 0
    opened = put_on_record(planned_sweep(read_document(desk.file)))
    assert "gpus_per_worker" not in opened.folder.folder.read_text("spec.yaml")


@pytest.mark.parametrize("params", ["full", "bitfit", "adaptor", "lora"])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_every_kind_of_model_and_params_is_measured(params: str, prediction_type: str, desk: Desk, fewshot: Command) -> None:
    write_pipeline(desk.folder / "other", prediction_type, sample_size=(16, 24))
    desk.tree["source"] |= {"model": str(desk.folder / "other")}
    desk.tree["train"]["params"] = params
    answer = fewshot("check", desk.write())
    assert answer.code == 0, answer.err
    assert f"3 x 16 x 24, 0.02 M parameters, {prediction_type} prediction" in answer.out


def test_stages_are_not_computed_for_the_estimate(desk: Desk, fewshot: Command) -> None:
    """256 generated images and a classifier of 300 steps at full length would take minutes; a method's cheap values are its own fields."""
    desk.tree["source"]["images"] = "generated"
    desk.tree["method"] = {"ant": {"noise_steps": 1}}
    started = time.monotonic()
    assert fewshot("check", desk.write()).code == 0
    assert time.monotonic() - started < 40
    for method in METHODS.values():
        assert set(method.config.cheap_stages) <= set(method.config.model_fields)
        method.config.model_validate(dict(method.config.cheap_stages))


def test_a_step_that_takes_long_is_measured_on_one_image(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the batch sizes of the trials that are made."""
    document, file = check_document(parse_document(desk.write().read_text(), "mine.yaml"))
    spec = preset_materials(document, file).spec
    made: list[int] = []
    small_trial = cost._small_trial

    def watched(spec: cost.TrialSpec, batch_size: int, scratch: Folder, device: torch.device) -> cost.Trial:
        made.append(batch_size)
        return small_trial(spec, batch_size, scratch, device)

    monkeypatch.setattr(cost, "_small_trial", watched)
    measured = cost.measure(spec)
    assert made == [1, 4]
    assert 0 < measured.forward_sec < 1
    materials = preset_materials(document, file)
    assert isinstance(materials, DiffusionMaterials)
    assert measured.checkpoint_bytes == 16 * sum(p.numel() for p in materials.source_backbone.network.parameters())
    monkeypatch.setattr(cost, "BRISK_SEC", 0.0)
    made.clear()
    assert cost.measure(spec).step_sec > 0
    assert made == [1]


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_in_sweeps(file: Path, fewshot: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, where all they name comes with the package; else as far as no model and images are needed."""
    monkeypatch.chdir(tmp_path)
    _, spec = check_document(read_document(file))
    answer = None
    if spec.target.images.startswith("embedded://"):
        answer = fewshot("check", file)
        assert answer.code == 0, answer.err
    elif spec.source.model is None:  # what isn't here is named; a hub is not asked
        answer = fewshot("check", file)
        assert answer.code == 2
        assert "there is no such" in answer.err or "cannot be read" in answer.err
    assert answer is not None or spec.source.model is not None
    assert list(tmp_path.iterdir()) == []


def test_weights_that_make_no_numbers_are_refused(desk: Desk, fewshot: Command) -> None:
    """Oracle: the rule for messages; each of the weights is a number."""
    path = desk.folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_in.weight"].fill_(3e38)
    weights["conv_in.bias"].fill_(3e38)
    save_file(weights, path, metadata={"format": "pt"})
    answer = fewshot("check", desk.write())
    assert answer.code == 2
    assert answer.err == (
        f"error: source.model: the network's output at {desk.folder}/model isn't finite at t = 0; "
        "one that was trained at every t from 0 to 999 would be right\n"
    )
