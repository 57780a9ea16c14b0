"""The product of relative loss and relative distance, in a trial and of the source itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from fewshot_ray.metrics.extractors import load_extractor, outputs
from fewshot_ray.metrics.fidelity import frechet_distance, kernel_distance, relative_distance
from fewshot_ray.spec.document import Document
from fewshot_ray.storage import Folder
from fewshot_ray.trial import evaluation, source
from fewshot_ray.trial.compose import compose
from fewshot_ray.trial.drawing import draw
from fewshot_ray.trial.finished import TestSplit
from fewshot_ray.trial.source import measure_source
from fewshot_ray.trial.trial import Trial

CPU = torch.device("cpu")
METRICS = ["relative_error", "alignment"]


def spec(**evaluate: Any) -> Any:
    """Two steps on ten digits, judged on ten of the validation images."""
    tree = {
        "name": "relative",
        "source": {"model": "embedded://digits-ddpm"},
        "target": {
            "images": "embedded://digits/shots",
            "holdout": "embedded://digits/biased-validation",
            "test": "embedded://digits/biased-test",
        },
        "method": {"finetune": {}},
        "train": {"steps": 2, "batch_size": 4, "lr": 3e-3, "ema": {"decay": 0.0, "warmup": False}},
        "evaluate": {
            **{"every": 2, "samples": 8, "final_samples": 6, "sampler": "dpm++", "sampler_steps": 4, "loss_draws": 90, "grid_images": 4},
            **{"keep_samples": True, "metrics": METRICS, **evaluate},
        },
        "search": {"objectives": {"relative_error": "min"}},
    }
    return compose(Document(tree, "relative"))


def distance(samples: torch.Tensor, source: torch.Tensor, reference: torch.Tensor) -> float:
    """By the definition, of uint8 images."""
    extractor = load_extractor("digits", device="cpu")
    x, s, y = (extractor.features(images) for images in (samples, source, reference))
    frechet = frechet_distance(x, y) / frechet_distance(s, y)
    return (frechet + kernel_distance(x, y).value / kernel_distance(s, y).value) / 2


def test_a_trials_error_is_its_loss_times_its_distance_relative_to_the_source(tmp_path: Path) -> None:
    """Oracle: the definition, over the samples that trial and source have written from the same noise; the source itself has 1."""
    cache = Folder(str(tmp_path / "cache"))
    trial = Trial(spec(), Folder(str(tmp_path / "trial")), cache, device=CPU)
    (found,) = list(trial.evaluations())
    of_source = measure_source(spec(), Folder(str(tmp_path / "source")), cache, CPU)
    drawn = [
        load((Folder(str(tmp_path / name)) / "samples").read_bytes(f"step_{step:06d}.safetensors"))["images"]
        for name, step in (("trial", 2), ("source", 0))
    ]
    assert [len(images) for images in drawn] == [8, 8]
    expected = distance(*drawn, trial.materials.folds[0].holdout.images)
    assert found.metrics["relative_distance"] == pytest.approx(expected, rel=1e-9)
    assert found.metrics["relative_error"] == pytest.approx(expected * found.metrics["relative_loss"], rel=1e-9)
    assert 0 < found.metrics["alignment"] < 2
    assert [of_source.metrics[name] for name in ("relative_error", "relative_distance", "relative_loss")] == pytest.approx([1, 1, 1])
    assert of_source.metrics["alignment"] == 0
    assert trial.best_step() == 2


def test_on_test_images_too(tmp_path: Path) -> None:
    """Oracle: the definition, over `final_samples` samples; the source is 1 there, before or after another one."""
    split = TestSplit(spec(), Folder(str(tmp_path / "cache")), CPU)
    trial = Trial(spec(), Folder(str(tmp_path / "trial")), Folder(str(tmp_path / "cache")), device=CPU)
    list(trial.evaluations())
    candidate = trial.materials.candidate(trial.trainings[0])
    found = split.measure(candidate)
    drawn = [split.evaluator.draw_samples(one, 6).cpu() for one in (candidate, split.materials.source_candidate())]
    expected = distance(*drawn, split.fold.holdout.images)
    assert found["relative_error"] == pytest.approx(expected * found["relative_loss"], rel=1e-9)
    assert split.measure_source()["relative_error"] == pytest.approx(1)


def test_a_source_that_is_as_near_as_its_error_counts_as_that_far() -> None:
    """Oracle: by hand; a source of the reference's own distribution has a kernel distance about 0, by which nothing is divided."""
    generator = torch.Generator().manual_seed(0)
    x, from_source, y = (torch.randn(40, 6, generator=generator) + shift for shift in (3.0, 0.0, 0.0))
    of_source = kernel_distance(from_source, y)
    assert abs(of_source.value) < 2 * of_source.stderr
    expected = (
        frechet_distance(x, y) / frechet_distance(from_source, y) + kernel_distance(x, y).value / max(of_source.value, of_source.stderr)
    ) / 2
    assert relative_distance(x, from_source, y) == pytest.approx(expected)
    with pytest.raises(ValueError, match="reference images"):
        relative_distance(x, y, y)


def test_the_source_is_drawn_and_seen_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the number of calls; its samples are drawn once a sweep, and seen once by each fold of a trial, not at each evaluation."""
    drawn, seen = [], []
    monkeypatch.setattr(source, "draw", lambda *args: drawn.append(args[1]) or draw(*args))
    monkeypatch.setattr(evaluation, "outputs", lambda extractor, images: seen.append(len(images)) or outputs(extractor, images))
    tree = {**spec().tree, "target": {"images": "embedded://digits/shots", "holdout": {"crossfit": 2}}}
    tree["train"] = {**tree["train"], "steps": 4}
    crossfit, cache = compose(Document(tree, "relative")), Folder(str(tmp_path / "cache"))
    measure_source(crossfit, Folder(str(tmp_path / "source")), cache, CPU)
    seen.clear()
    trial = Trial(crossfit, Folder(str(tmp_path / "trial")), cache, device=CPU)
    assert [one.step for one in trial.evaluations()] == [2, 4]
    assert drawn == [8]
    assert seen == [8, 8]
