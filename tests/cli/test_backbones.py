"""Every kind of backbone, from the user's file to a pipeline that diffusers alone loads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fewshot_ray.models.parameters import TunedNetwork
from fewshot_ray.report.export import trial_spec
from fewshot_ray.search.sweep_folder import SweepFolder
from fewshot_ray.trial.denoising import DiffusionCandidate
from fewshot_ray.trial.finished import Finished, load_finished
from tests.cli.conftest import Command, Desk, painting
from tests.cli.plain_diffusers import PlainDiffusers
from tests.cli.sweeping import finished_sweep
from tests.cli.test_bad_input import one_line
from tests.tiny_pipelines import WRITERS, write_adm, write_dinov2

KINDS = [*WRITERS, "adm"]
LOAD_ELSEWHERE = """
import sys
import numpy, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
pipeline.set_progress_bar_config(disable=True)
arguments = {"class_labels": [0, 0], "guidance_scale": 2.0} if type(pipeline).__name__ == "DiTPipeline" else {"batch_size": 2}
images = pipeline(**arguments, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
assert images.shape[-1] == 3 and numpy.isfinite(images).all(), images.shape
print(type(pipeline).__name__)
"""
METHODS: dict[str, dict[str, Any]] = {
    "ant": {"noise_steps": 1, "guidance": 1.0, "classifier_steps": 2, "classifier_batch": 4, "noise_norm": "moments"},
    "sdft": {},
    "sadm": {"encoder": "dinov2", "warmup_steps": 2, "decoded_images": 2},
}


def prepare(desk: Desk, kind: str, method: dict[str, Any], params: Any = "full") -> Desk:
    """The desk's run on a source of another kind."""
    write_dinov2(desk.folder / "dinov2")
    method = {name: dict(settings) for name, settings in method.items()}
    if "sadm" in method:
        method["sadm"]["encoder_weights"] = str(desk.folder / "dinov2")
    if kind == "adm":
        source: dict[str, Any] = {"adm": write_adm(desk.folder / "p2.pt")}
    else:
        WRITERS[kind](desk.folder / "source")
        source = {"model": str(desk.folder / "source")}
    target = {**desk.tree["target"], "holdout": 2, **({"labels": "one"} if kind == "dit" else {})}
    desk.tree |= {
        "source": {**source, "images": str(desk.folder / "photos")},
        "target": target,
        "method": method,
        "train": {"steps": 4, "batch_size": 4, "micro_batch": 3, "lr": 1e-2, "params": params},
        "evaluate": {**desk.tree["evaluate"], "grid_images": 2, "sampler_steps": 2, **({"guidance_scale": 2.0} if kind == "dit" else {})},
        "search": {"trials": 1},
    }
    return desk


def finished_of(folder: SweepFolder) -> Finished:
    record = folder.record("t0000")
    assert record is not None
    assert record.best_step is not None
    return load_finished(
        trial_spec(folder, record), folder.trial("t0000"), record.best_step, cache=folder.folder / "cache", device=torch.device("cpu")
    )


def candidate_of(finished: Finished) -> DiffusionCandidate:
    assert isinstance(finished.candidate, DiffusionCandidate)
    return finished.candidate


def tuned_of(finished: Finished) -> TunedNetwork:
    tuned = candidate_of(finished).tuned
    assert tuned is not None
    return tuned


def test_check_says_where_an_original_checkpoint_is(desk: Desk, fewshot: Command) -> None:
    """Oracle: its place, not "from scratch"."""
    answer = fewshot("check", prepare(desk, "adm", {"finetune": {}}).write())
    assert answer.code == 0, answer.err
    assert f"model   {desk.folder / 'p2.pt'}: UNet2DModel" in answer.out


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_file_to_plain_diffusers(kind: str, desk: Desk, fewshot: Command, plain_diffusers: PlainDiffusers) -> None:
    """Oracle: diffusers alone, in a process that can't import this package, and the averaged weights' own output here."""
    opened = finished_sweep(prepare(desk, kind, METHODS))
    record = opened.folder.record("t0000")
    assert record is not None
    assert record.state == "COMPLETE", record.error
    out = desk.folder / "exported"
    answer = fewshot("export", opened.folder.folder.url, out)
    assert answer.code == 0, answer
    before = json.loads((out / "model_index.json").read_text())["_class_name"]
    assert plain_diffusers.run(LOAD_ELSEWHERE, out) == [before]
    finished = finished_of(opened.folder)
    pipeline = DiffusionPipeline.from_pretrained(str(out), trust_remote_code=True)
    exported = pipeline.transformer if kind == "dit" else pipeline.unet
    x_t = torch.randn(2, *finished.candidate.noise_shape, generator=torch.Generator().manual_seed(0))
    t, labels = torch.tensor([10, 900]), torch.tensor([0, 1]) if kind == "dit" else None
    theirs = None if labels is None else torch.tensor([0, 1000])  # the pipeline's null class
    with torch.no_grad():
        ours = candidate_of(finished).network(x_t, t, class_labels=labels).sample
        torch.testing.assert_close(exported(x_t, t, class_labels=theirs).sample, ours, rtol=1e-4, atol=1e-5)
    assert fewshot("sample", out, desk.folder / "samples", "--number", "3", "--steps", "2").code == 0
    assert Image.open(desk.folder / "samples" / "00000.png").size == (finished.candidate.size[1], finished.candidate.size[0])


@pytest.mark.parametrize("params", ["difffit", "lora", "oft", "boft", "bitfit"])
@pytest.mark.parametrize("kind", ["ldm-vq", "dit"])
def test_parameter_efficient_settings(kind: str, params: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: the merged export's output is the trained network's; the checkpoint holds no more than was trained."""
    opened = finished_sweep(prepare(desk, kind, {"sdft": {}}, params))
    out = desk.folder / "exported"
    assert fewshot("export", opened.folder.folder.url, out).code == 0
    finished = finished_of(opened.folder)
    assert 0 < tuned_of(finished).share < 0.6
    pipeline = DiffusionPipeline.from_pretrained(str(out))
    exported = pipeline.transformer if kind == "dit" else pipeline.unet
    x_t = torch.randn(1, *finished.candidate.noise_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0]) if kind == "dit" else None
    with torch.no_grad():
        ours = candidate_of(finished).network(x_t, torch.tensor([500]), class_labels=labels).sample
        torch.testing.assert_close(exported(x_t, torch.tensor([500]), class_labels=labels).sample, ours, rtol=1e-3, atol=1e-4)
    row = opened.folder.rows("t0000")[-1]
    assert row.trained_share == pytest.approx(tuned_of(finished).share)


def test_classes_from_sub_folders(desk: Desk, fewshot: Command) -> None:
    """Oracle: the folders' names in the exported pipeline, in order; a held-out class that no shot has is refused."""
    prepare(desk, "dit", {"finetune": {}})
    for name, first in (("cats", 0), ("dogs", 10)):
        (desk.folder / "pets" / name).mkdir(parents=True)
        for seed in range(first, first + 3):
            painting(seed).save(desk.folder / "pets" / name / f"{seed}.png")
    desk.tree["target"] = {"images": str(desk.folder / "pets"), "labels": "folders", "holdout": 2}
    opened = finished_sweep(desk)
    out = desk.folder / "exported"
    assert fewshot("export", opened.folder.folder.url, out).code == 0
    assert json.loads((out / "model_index.json").read_text())["id2label"] == {"0": "cats", "1": "dogs"}
    assert "class_labels=[0, 1], guidance_scale=2, num_inference_steps=2" in (out / "README.md").read_text()
    assert DiffusionPipeline.from_pretrained(str(out)).transformer.config.num_embeds_ada_norm == 1000
    (desk.folder / "others" / "birds").mkdir(parents=True)
    painting(30).save(desk.folder / "others" / "birds" / "a.png")
    desk.tree["target"]["holdout"] = str(desk.folder / "others")
    desk.tree["name"] = "other"
    desk.write()
    assert "class that no shot has ('birds'); one of cats, dogs would be right" in one_line(fewshot("check", desk.file))


def test_more_classes_than_the_pipeline_knows(desk: Desk, fewshot: Command) -> None:
    """`DiTPipeline` takes label 1000 for the null class. Oracle: one line, before training."""
    prepare(desk, "dit", {"finetune": {}})
    for number in range(1001):
        (desk.folder / "pets" / f"{number:04}").mkdir(parents=True)
        Image.new("RGB", (16, 16), (number % 251, number // 251, 0)).save(desk.folder / "pets" / f"{number:04}" / f"{number}.png")
    desk.tree["target"] = {"images": str(desk.folder / "pets"), "labels": "folders", "holdout": 2}
    assert "target.labels: 1001 sub-folders given, but DiTPipeline" in one_line(fewshot("check", desk.write()))


def no_labels(desk: Desk) -> None:
    del desk.tree["target"]["labels"]


def labels_for_nothing(desk: Desk) -> None:
    desk.tree["target"]["labels"] = "one"


def flat_folders(desk: Desk) -> None:
    desk.tree["target"]["labels"] = "folders"


def adaptor(desk: Desk) -> None:
    desk.tree["train"]["params"] = "adaptor"


def one_image(desk: Desk) -> None:
    desk.tree["train"]["batch_size"] = 1


def no_inception(desk: Desk) -> None:
    desk.tree["method"]["sadm"] = {"encoder": "inception", "encoder_weights": "nowhere.pth"}


def digits_psi(desk: Desk) -> None:
    desk.tree["method"]["sadm"] = {"encoder": "digits"}


def negative(desk: Desk) -> None:
    desk.tree["method"]["sdft"] = {"lambda_distill": -0.1}


def pointless_step_size(desk: Desk) -> None:
    desk.tree["method"]["ant"] = {"noise_steps": 0, "noise_step_size": 0.02}


CASES = {
    "unlabelled": ("dit", no_labels, r"target\.labels: source\.model is class-conditional.*'one'.*'folders'"),
    "needless labels": ("ldm-kl", labels_for_nothing, r"target\.labels: 'one' given, but source\.model has no classes; leave it out"),
    "no sub-folders": ("dit", flat_folders, r"target\.labels: .* is in no sub-folder"),
    "adaptor on a transformer": ("dit", adaptor, r"train\.params\.adaptor: .*DiTTransformer2DModel"),
    "a batch of one": ("pixel", one_image, r"train\.batch_size: 1 given, but sadm compares the images of a batch; 2 or more"),
    "Psi without weights": ("pixel", no_inception, r"method\.sadm\.encoder.*nowhere\.pth\); a file or folder that exists is right"),
    "Psi of another size": ("pixel", digits_psi, r"method\.sadm\.encoder: 'digits' reads 1x8x8 images"),
    "negative lambda": ("pixel", negative, r"method\.sdft\.lambda_distill: -0\.1"),
    "a step size for no steps": ("pixel", pointless_step_size, r"method\.ant\.noise_step_size: is given, but noise_steps is 0"),
}


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("case", CASES)
def test_refused_before_training(case: str, command: str, desk: Desk, fewshot: Command) -> None:
    """Oracle: the messages by hand; nothing of the user's changed; `run` stops before it starts Ray or makes a folder."""
    kind, change, right = CASES[case]
    change(prepare(desk, kind, METHODS))
    desk.write()
    before = desk.contents()
    assert re.search(right, one_line(fewshot(command, desk.file)))
    assert desk.contents() == before
