"""`leaderboard`, `export`, `sample` and `evaluate` on sweeps that ran here, without Ray."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from fewshot_ray.data.images import read_images
from fewshot_ray.trial.finished import load_folds
from tests.cli.conftest import Answer, Command, Desk, write_pictures, write_pipeline
from tests.cli.plain_diffusers import PlainDiffusers
from tests.cli.sweeping import finished_sweep
from tests.cli.test_bad_input import one_line

PARAMS = {"full": "full", "bitfit": "bitfit", "adaptor": {"adaptor": {"pool": 2, "width": 4}}, "lora": {"lora": {"rank": 2}}}
LOAD_ELSEWHERE = """
import sys
import numpy, torch
from diffusers import DiffusionPipeline
for place, trust in zip(sys.argv[1::2], sys.argv[2::2]):
    pipeline = DiffusionPipeline.from_pretrained(place, trust_remote_code=trust == "trust")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (2, 16, 16, 3) and numpy.isfinite(images).all(), images.shape
    print(type(pipeline.unet).__name__)
"""


def small(desk: Desk) -> Desk:
    """One trial of plain fine-tuning, 2 shots kept back."""
    desk.tree |= {"method": {"finetune": {}}, "search": {"trials": 1}}
    desk.tree["target"]["holdout"] = 2
    return desk


def test_every_kind_of_params_loads_in_plain_diffusers(desk: Desk, fewshot: Command, plain_diffusers: PlainDiffusers) -> None:
    """Oracle: diffusers alone, in a process that can't import this package; and the averaged weights' own output here."""
    small(desk)
    write_pipeline(desk.folder / "v", "v_prediction")
    desk.tree["source"]["model"] = str(desk.folder / "v")
    arguments = []
    for name, params in PARAMS.items():
        desk.tree |= {"name": name, "train": {"steps": 2, "batch_size": 4, "lr": 1e-2, "params": params}}
        opened = finished_sweep(desk)
        out = desk.folder / f"{name}-pipeline"
        assert fewshot("export", opened.folder.folder.url, out).code == 0
        arguments += [str(out), "trust" if name == "adaptor" else "plain"]
        if name != "adaptor":
            _same_output_as_the_checkpoint(out, opened.folder.folder.url, fewshot)
    assert plain_diffusers.run(LOAD_ELSEWHERE, *arguments) == ["UNet2DModel", "UNet2DModel", "AdaptorUNet2DModel", "UNet2DModel"]


def _same_output_as_the_checkpoint(out: Path, sweep: str, fewshot: Command) -> None:
    from fewshot_ray.cli.show import read_sweep
    from fewshot_ray.report.export import trial_spec

    folder, _ = read_sweep(sweep)
    record = folder.record("t0000")
    assert record is not None
    assert record.best_step is not None
    spec = trial_spec(folder, record)
    (finished,) = load_folds(spec, folder.trial("t0000"), record.best_step, cache=folder.folder / "cache", device=torch.device("cpu"))
    pipeline = DiffusionPipeline.from_pretrained(str(out))
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    x_t, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([10, 900])
    with torch.no_grad():
        torch.testing.assert_close(pipeline.unet(x_t, t).sample, finished.candidate.network(x_t, t).sample, rtol=1e-4, atol=1e-5)


def test_the_card_counts_the_images_trained_on(desk: Desk, fewshot: Command) -> None:
    """Two of the six shots were kept back: the model never saw them. Oracle: the hashes of the photographs themselves."""
    url = finished_sweep(small(desk)).folder.folder.url
    assert fewshot("export", url, desk.folder / "out").code == 0
    card = (desk.folder / "out" / "README.md").read_text()
    assert "fine-tuned on 4 images" in card
    listed = set(re.findall(r"- `([0-9a-f]{64})`", card))
    assert len(listed) == 4
    assert listed < set(read_images(str(desk.folder / "photos"), size=16, channels=3).hashes)


def test_export_takes_nothing_away(desk: Desk, fewshot: Command) -> None:
    """Oracle: hashes of the user's other files. An earlier export alone is replaced, and only when asked."""
    url = finished_sweep(small(desk)).folder.folder.url
    (desk.folder / "diary").write_text("dear")
    before = desk.contents()
    for place, right in {
        "photos": "no earlier export",
        "model": "no earlier export",
        "sweeps": "no earlier export",
        "diary": "is a file",
        "diary/out": "cannot be written",
    }.items():
        for option in ([], ["--overwrite"]):
            assert right in one_line(fewshot("export", url, desk.folder / place, *option))
    assert "cannot be written" in one_line(fewshot("export", url, "/proc/out"))
    assert "no such trial; one of t0000" in one_line(fewshot("export", url, desk.folder / "new", "--trial", "t0007"))
    assert "no such trial" in one_line(fewshot("export", url, desk.folder / "new", "--trial", "../t0000"))
    assert desk.contents() == before
    (desk.folder / "new").mkdir()
    assert fewshot("export", url, desk.folder / "new").code == 0
    assert "--overwrite, would be right" in one_line(fewshot("export", url, desk.folder / "new"))
    assert fewshot("export", url, desk.folder / "new", "--overwrite", "--trial", "t0000").code == 0
    after = desk.contents()
    assert before.items() <= after.items()
    assert {path.split("/")[0] for path in after} - {path.split("/")[0] for path in before} == {"new"}


def test_a_damaged_checkpoint_is_named(desk: Desk, fewshot: Command) -> None:
    opened = finished_sweep(small(desk))
    state = next(Path(opened.folder.folder.url).glob("trials/t0000/checkpoints/*/state.safetensors"))
    for path in state.parent.parent.glob("*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-8])
    assert "is damaged" in one_line(fewshot("export", opened.folder.folder.url, desk.folder / "out"))
    assert not (desk.folder / "out").exists()


def test_a_source_model_that_was_exchanged_is_named(desk: Desk, fewshot: Command) -> None:
    opened = finished_sweep(small(desk))
    for path in sorted((desk.folder / "model").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (desk.folder / "model").rmdir()
    write_pipeline(desk.folder / "model", block_out_channels=(12, 12))
    _forget_what_was_read()
    assert "diffusion_pytorch_model.safetensors changed" in one_line(fewshot("export", opened.folder.folder.url, desk.folder / "out"))


def _forget_what_was_read() -> None:
    from fewshot_ray.trial import diffusion

    diffusion._source.cache_clear()


def test_cross_fitted_trials_are_compared_as_equals(desk: Desk, fewshot: Command) -> None:
    """Plain fine-tuning saw half the shots in each fold, the refit all: beside the refit stands the trial it repeats.

    Oracle: each fold's loss measured on its own.
    """
    write_pictures(desk.folder / "test", 5, first=20)
    desk.tree["target"]["test"] = str(desk.folder / "test")
    opened = finished_sweep(desk)
    url = opened.folder.folder.url
    answer = fewshot("evaluate", url)
    assert answer.code == 0
    written = json.loads((Path(url) / "test.json").read_text())["metrics"]
    titles = list(written)
    assert titles[0] == "source model"
    assert titles[1].startswith("refit-t000")
    winner = titles[1].split(" ")[0].removeprefix("refit-")
    assert titles[2].startswith(f"{winner} (")
    assert any("plain" in title for title in titles)
    assert all("mean of 2 folds" in title for title in titles[2:])
    assert written[titles[2]]["holdout_loss"] == pytest.approx(_mean_over_folds(url, winner))
    assert "refit-t000" in fewshot("leaderboard", url).out


def _mean_over_folds(url: str, trial_id: str) -> float:
    from fewshot_ray.cli.show import read_sweep
    from fewshot_ray.report.export import trial_spec
    from fewshot_ray.trial.finished import TestSplit

    folder, _ = read_sweep(url)
    record = folder.record(trial_id)
    assert record is not None
    assert record.best_step is not None
    spec, cpu = trial_spec(folder, record), torch.device("cpu")
    split = TestSplit(spec, folder.folder / "cache", cpu)
    losses = [
        split.measure(model.candidate)["holdout_loss"]
        for model in load_folds(spec, folder.trial(trial_id), record.best_step, cache=folder.folder / "cache", device=cpu)
    ]
    assert len(losses) == 2
    return sum(losses) / 2


def test_without_test_images_the_held_out_ones_are_measured_on(desk: Desk, fewshot: Command) -> None:
    """Oracle: the folder's images without the shots among them are counted; it is said what was chosen on; `final_samples` counts."""
    small(desk)
    write_pictures(desk.folder / "held out", 5, first=20)
    for name in ("2.webp", "logo3.png"):
        shutil.copy(desk.folder / "photos" / name, desk.folder / "held out" / f"same {name}")
    desk.tree["target"]["holdout"] = str(desk.folder / "held out")
    desk.tree["evaluate"]["final_samples"] = 7
    url = finished_sweep(desk).folder.folder.url
    answer = fewshot("evaluate", url, "--json", desk.folder / "out.json")
    assert answer.code == 0
    assert "on 5 images of" in answer.out
    assert "the winner was chosen on these images" in " ".join(answer.out.split())
    found = json.loads((Path(url) / "test.json").read_text())
    assert found["on"] == "target.holdout"
    assert found["protocol"]["n_generated"] == 7
    losses = [values["holdout_loss"] for values in found["metrics"].values()]
    assert len(losses) == 2
    assert json.loads((desk.folder / "out.json").read_text()) == {"place": url, "kind": "sweep", **found}


def test_a_sweep_says_what_its_values_are_measured_with(desk: Desk, fewshot: Command) -> None:
    """Oracle: the file's own settings, in the trial's folder, beside the leaderboard and on the page; without stamps no line."""
    desk.tree["evaluate"] |= {"loss_draws": 12}
    folder = Path(finished_sweep(desk).folder.folder.url)
    stamps = json.loads((folder / "trials" / "t0000" / "stamps.json").read_text())
    assert stamps == {"holdout_loss": {"protocol": "clean", "seed": 0, "n_real": 3, "loss_draws": 12, "folds": 2}}
    text = "protocol clean; images: 3 held-out; means over 2 folds"
    assert f"measured with {text}\nseed 0\n12 draws of the loss\n" in fewshot("leaderboard", folder).out
    assert f"Measured with {text}; seed 0; 12 draws of the loss." in (folder / "report.html").read_text()
    for path in folder.glob("trials/*/stamps.json"):
        path.unlink()
    assert "measured with" not in fewshot("leaderboard", folder).out


def test_evaluate_without_test_images(desk: Desk, fewshot: Command) -> None:
    url = finished_sweep(small(desk)).folder.folder.url
    assert "target.test: not given" in one_line(fewshot("evaluate", url))
    assert "no such trial" in one_line(fewshot("evaluate", url, "--trial", "best"))


def test_samples_are_images_of_the_models_size(desk: Desk, fewshot: Command) -> None:
    """Oracle: the files' own sizes; the same seed twice, and more images, give the same first ones."""
    model, out = desk.folder / "model", desk.folder / "samples"
    assert fewshot("sample", model, out, "-n", 3, "--steps", 4).code == 0
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "00002.png", "grid.png"]
    first = np.asarray(Image.open(out / "00000.png"))
    assert first.shape == (16, 16, 3)
    assert fewshot("sample", model, out, "-n", 5, "--steps", 4, "--overwrite").code == 0
    assert np.array_equal(np.asarray(Image.open(out / "00000.png")), first)
    assert len(list(out.iterdir())) == 6
    assert fewshot("sample", model, out, "-n", 2, "--steps", 4, "--overwrite").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["00000.png", "00001.png", "grid.png"]
    assert fewshot("sample", model, desk.folder / "other", "-n", 1, "--steps", 4, "--sampler", "dpm++", "--seed", 1).code == 0


def test_sampling_takes_nothing_away(desk: Desk, fewshot: Command) -> None:
    (desk.folder / "diary").write_text("dear")
    (desk.folder / "mine").mkdir()
    Image.new("RGB", (4, 4)).save(desk.folder / "mine" / "00002.png")
    write_pipeline(desk.folder / "latent", in_channels=4, out_channels=4)
    (desk.folder / "sweep" / "trials").mkdir(parents=True)
    (desk.folder / "sweep" / "spec.yaml").write_text("")
    before = desk.contents()
    model, out = desk.folder / "model", desk.folder / "samples"
    answers: dict[str, Answer] = {
        "euler: not known; ddim or dpm": fewshot("sample", model, out, "--sampler", "euler"),
        "--steps 2000: the model has 1000": fewshot("sample", model, out, "--steps", 2000),
        "diary: is a file": fewshot("sample", model, desk.folder / "diary"),
        "cannot be written": fewshot("sample", model, desk.folder / "diary" / "samples", "--steps", 1),
        "mine: holds 00002.png; another folder, or --overwrite, would be right": fewshot("sample", model, desk.folder / "mine", "-n", 3),
        "photos: holds 2.webp and 5 more; another": fewshot("sample", model, desk.folder / "photos"),
        "MODEL: no folder": fewshot("sample", desk.folder / "nothere", out),
        "has no model_index.json": fewshot("sample", desk.folder / "photos", out),
        f"MODEL: {desk.folder}/sweep is a sweep's folder; `fewshot-ray export": fewshot("sample", desk.folder / "sweep", out),
        "has 4 channels": fewshot("sample", desk.folder / "latent", out),
    }
    for right, answer in answers.items():
        assert right in one_line(answer)
    assert desk.contents() == before


def test_others_pictures_stay_beside_samples(desk: Desk, fewshot: Command) -> None:
    """Oracle: their bytes, also of names like samples'; with --overwrite what has a sample's name is replaced."""
    model, mine = desk.folder / "model", desk.folder / "mine"
    mine.mkdir()
    for name in ("cat.png", "00000.png", "00007.png", "00008.png"):
        Image.new("RGB", (4, 4)).save(mine / name)
    (mine / "00008.png").write_bytes(b"no picture")
    before = {path.name: path.read_bytes() for path in mine.iterdir()}
    assert "--overwrite" in one_line(fewshot("sample", model, mine, "-n", 2, "--steps", 2))
    assert {path.name: path.read_bytes() for path in mine.iterdir()} == before
    assert fewshot("sample", model, mine, "-n", 2, "--steps", 2, "--overwrite").code == 0
    assert sorted(path.name for path in mine.iterdir()) == ["00000.png", "00001.png", "00007.png", "00008.png", "cat.png", "grid.png"]
    assert all((mine / name).read_bytes() == before[name] for name in ("cat.png", "00007.png", "00008.png"))
    assert Image.open(mine / "00000.png").size == (16, 16)


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_exported_files_have_the_users_modes(mask: int, file: int, folder: int, desk: Desk, fewshot: Command) -> None:
    """Oracle: what this user's new files and folders get; safetensors writes its own for their owner alone."""
    url, out = finished_sweep(small(desk)).folder.folder.url, desk.folder / "new"
    before = os.umask(mask)
    try:
        assert fewshot("export", url, out).code == 0
        assert fewshot("sample", out, desk.folder / "drawn", "-n", 1, "--steps", 2).code == 0
    finally:
        os.umask(before)
    written = [out, *out.rglob("*"), *(desk.folder / "drawn").iterdir()]
    assert any(path.suffix == ".safetensors" for path in written)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in written} == {
        path.name: oct(folder if path.is_dir() else file) for path in written
    }
