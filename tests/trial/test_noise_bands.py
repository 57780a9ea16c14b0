"""The held-out losses by noise level in a trial, relative to the source model's."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load

from fewshot_ray.errors import UserError
from fewshot_ray.spec.sections.evaluate import BAND_METRICS, BANDS
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.trial.candidate import HoldoutLosses
from fewshot_ray.trial.denoising import DiffusionCandidate, HoldoutLoss
from fewshot_ray.trial.diffusion import DiffusionMaterials
from fewshot_ray.trial.source import measure_source
from fewshot_ray.trial.trial import Trial
from tests.metrics.test_noise_levels import LOW, relative
from tests.trial.tiny import CPU, document, spec, trial

DIGITS: dict[str, Any] = {
    "source": {"build": None, "images": None, "model": "embedded://digits-ddpm"},
    "target": {"shots": 5, "holdout": {"crossfit": 2}},
    "evaluate": {"samples": 0, "grid_images": 0, "loss_draws": 40},
    "search": {"objectives": {"holdout_loss": "min"}},
}
CONTENT = {
    **DIGITS,
    "evaluate": {**DIGITS["evaluate"], "metrics": ["relative_content"]},
    "search": {"objectives": {"relative_content": "min"}},
}


def source_loss(run: Trial, fold: int) -> HoldoutLosses:
    """The source's losses, measured anew."""
    candidate = run.materials.source_candidate()
    assert isinstance(candidate, DiffusionCandidate)
    measure = HoldoutLoss(run.config, run.materials.folds[fold], seed=run.spec.file.seed, device=CPU, group=Group())
    return measure.losses(candidate.backbone, candidate.network)


def test_the_bands_are_of_all_folds_together(tmp_path: Path) -> None:
    """Oracle: NumPy over the losses that were written, and the source's measured anew; the folds hold out 3 images and 2."""
    run = trial(tmp_path, **DIGITS)
    last = list(run.evaluations())[-1]
    written = load((run.folder / "losses").read_bytes("step_000004.safetensors"))
    loss, log_snr, source = (written[name].double().numpy() for name in ("loss", "log_snr", "source"))
    anew = [source_loss(run, fold) for fold in range(2)]
    assert [len(one.loss) for one in anew] == [42, 40]
    assert torch.equal(written["source"], torch.cat([one.loss for one in anew]))
    assert torch.equal(written["t"], torch.cat([one.t for one in anew]))
    assert {name: last.metrics[name] for name in last.metrics if name in BAND_METRICS} == pytest.approx(
        {
            **{f"relative_{band}": relative(log_snr, loss, source, LOW[band]) for band in BANDS},
            "relative_loss": relative(log_snr, loss, source, LOW["content"], 9),
            "loss_coarse": loss[np.exp(log_snr) < 0.01].mean(),
            "loss_content": loss[(np.exp(log_snr) >= 0.01) & (np.exp(log_snr) < 1)].mean(),
            "loss_cleanup": loss[np.exp(log_snr) >= 1].mean(),
        },
        rel=1e-9,
    )
    assert last.metrics["holdout_loss"] == pytest.approx((loss[:42].mean() + loss[42:].mean()) / 2, rel=1e-9)


def test_an_objective_by_noise_level_has_values_by_image(tmp_path: Path) -> None:
    """Oracle: the mean over the images is the metric; resuming gives the same."""
    run = trial(tmp_path / "whole", **CONTENT)
    history = list(run.evaluations())
    for one in history:
        assert set(one.metrics) == {"holdout_loss", *BAND_METRICS}
        assert len(one.by_image["relative_content"]) == len(one.image_losses) == 5
        assert float(np.mean(one.by_image["relative_content"])) == pytest.approx(one.metrics["relative_content"], rel=1e-6)
    stopped = trial(tmp_path / "stopped", **CONTENT)
    next(stopped.evaluations())
    again = list(trial(tmp_path / "stopped", **CONTENT).evaluations())
    assert [(one.metrics, one.by_image) for one in again] == [(one.metrics, one.by_image) for one in history]
    assert json.loads(json.dumps(asdict(history[0])))["by_image"] == history[0].by_image
    assert not next(trial(tmp_path / "other", **DIGITS).evaluations()).by_image


def test_the_sources_losses_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: how often the source is asked for: once a fold whatever the trials' seeds and methods are, and again for other noisings."""
    calls = []
    original = DiffusionMaterials.source_candidate
    monkeypatch.setattr(DiffusionMaterials, "source_candidate", lambda self: (calls.append(self), original(self))[1])
    images = {"source": {**DIGITS["source"], "images": "embedded://digits/shots?seed=5"}}
    specs = [spec(**DIGITS), spec(seed=7, **{**DIGITS, **images, "method": {"sdft": {}}}), spec(refit_steps=2, **DIGITS)]
    fewer = spec(**{**DIGITS, "evaluate": {**DIGITS["evaluate"], "loss_draws": 20}})
    for number, one in enumerate([*specs, fewer]):
        list(Trial(one, Folder(tmp_path / f"{number}"), Folder(tmp_path / "cache"), device=CPU, last_step=2).evaluations())
        assert len(calls) == (4 if number == 3 else 2)


def test_the_source_is_one_in_every_band(tmp_path: Path) -> None:
    """Oracle: the definition, also of a training before its first step."""
    run = trial(tmp_path, **DIGITS)
    for candidate in (run.materials.source_candidate(), run.materials.candidate(run.trainings[0])):
        found = run.evaluators[0].measure(candidate, samples=0)
        assert [found.metrics[f"relative_{band}"] for band in BANDS] == pytest.approx([1, 1, 1], rel=1e-12)


def test_nothing_is_relative_to_random_weights(tmp_path: Path) -> None:
    """Oracle: a network from scratch has the bands alone, and a file that asks for more is refused by field."""
    history = list(trial(tmp_path, evaluate={"samples": 0, "grid_images": 0, "loss_draws": 40}).evaluations())
    assert set(history[0].metrics) == {"holdout_loss", "loss_coarse", "loss_content", "loss_cleanup"}
    with pytest.raises(
        UserError, match=r"evaluate\.metrics\.0: relative_content is relative to a pre-trained source.*loss_content would be"
    ):
        spec(evaluate={"metrics": ["relative_content"]}, search={"objectives": {"relative_content": "min"}})


def test_a_band_without_noisings_is_named_before_the_run(tmp_path: Path) -> None:
    """Oracle: by hand. Two noisings can't be in all bands, and the check says which one has none."""
    metrics = ["loss_coarse", "loss_content", "loss_cleanup"]
    few = {
        **DIGITS,
        "target": {"shots": 3, "holdout": 1},
        "evaluate": {**DIGITS["evaluate"], "metrics": metrics, "loss_draws": 2},
        "search": {"objectives": {"loss_content": "min"}},
    }
    materials = DiffusionMaterials(spec(**few), Folder(tmp_path), CPU)
    with pytest.raises(
        UserError, match=r"evaluate\.metrics: loss_\w+ has none of the 2 noisings in its band; a larger evaluate\.loss_draws"
    ):
        materials.check(document(**few))
    DiffusionMaterials(spec(**{**few, "evaluate": {**few["evaluate"], "loss_draws": 40}}), Folder(tmp_path), CPU).check(document(**few))


def test_the_source_is_measured_as_a_trial_is(tmp_path: Path) -> None:
    """Oracle: a training before its first step; its picture is that of the trials' noise, and nothing of it is drawn again."""
    sections = {
        **DIGITS,
        "evaluate": {**DIGITS["evaluate"], "samples": 16, "grid_images": 4, "sampler_steps": 2, "metrics": ["holdout_loss", "kid"]},
    }
    found = measure_source(spec(**sections), Folder(tmp_path / "source"), Folder(tmp_path / "cache"), CPU)
    run = trial(tmp_path, **sections)
    before = run._measure(0)
    assert found.metrics == pytest.approx(before.metrics)
    assert (found.metrics["drift"], found.metrics["relative_content"]) == (0, pytest.approx(1))
    assert found.image_losses == before.image_losses
    for name in ("samples/step_000000.png", "losses/step_000000.safetensors"):
        assert (tmp_path / "source" / name).read_bytes() == (tmp_path / "trial" / name).read_bytes()
    first = next(run.evaluations())
    assert first.metrics["drift"] > 0
