"""Exports: what diffusers draws with them, and what their card says of it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, DiffusionPipeline

from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.pipeline import pipeline_call, save_pipeline
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import load_backbone
from tests.tiny_diffusion import tiny_backbone
from tests.tiny_pipelines import WRITERS

LATENT = ("ldm-vq", "ldm-kl", "dit")


def exported(kind: str, folder: Path, scheduler: dict[str, Any] | None = None) -> tuple[Backbone, Any]:
    """A source of this kind, with another scheduler where one is given, and its own export as diffusers loads it."""
    WRITERS[kind](folder / "source")
    if scheduler is not None:
        made = (DDIMScheduler if kind in LATENT else DDPMScheduler)(**scheduler)
        made.save_pretrained(folder / "source" / "scheduler")
    backbone = load_backbone(str(folder / "source"))
    save_pipeline(backbone, backbone.network, folder / "out")  # type: ignore[arg-type]
    pipeline = DiffusionPipeline.from_pretrained(str(folder / "out"))
    pipeline.set_progress_bar_config(disable=True)
    return backbone, pipeline


def drawn(pipeline: Any, **arguments: Any) -> np.ndarray:
    images: np.ndarray = pipeline(**arguments, generator=torch.Generator().manual_seed(3), output_type="np").images
    return images.transpose(0, 3, 1, 2) * 255


def ours(backbone: Backbone, steps: int, labels: torch.Tensor | None = None) -> np.ndarray:
    noise = torch.randn((2, *backbone.shape), generator=torch.Generator().manual_seed(3))
    return sample(backbone, backbone.network, noise, sampler="ddim", steps=steps, labels=labels).float().numpy()


@pytest.mark.parametrize("kind", LATENT)
def test_latent_exports_draw_what_was_measured(kind: str, tmp_path: Path) -> None:
    """Oracle: diffusers' own pipeline from the same noise; its list of timesteps begins where the noise belongs."""
    backbone, pipeline = exported(kind, tmp_path)
    labels = torch.tensor([0, 1]) if kind == "dit" else None
    arguments = {"batch_size": 2} if labels is None else {"class_labels": [0, 1], "guidance_scale": 1.0}
    theirs = drawn(pipeline, **arguments, num_inference_steps=4)
    assert pipeline.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    assert np.abs(theirs - ours(backbone, 4, labels)).max() < 1.01
    assert not pipeline.scheduler.config.clip_sample


@pytest.mark.parametrize("kind", ["pixel", "learned"])
def test_pixel_exports_take_ddpms_own_steps(kind: str, tmp_path: Path) -> None:
    """Oracle: diffusers: every timestep once; read as a DDIM pipeline it draws what was measured, where the variance is fixed."""
    scheduler = {"num_train_timesteps": 12, "beta_start": 0.02, "beta_end": 0.5}
    backbone, pipeline = exported(kind, tmp_path, scheduler)
    assert np.isfinite(drawn(pipeline, batch_size=2, num_inference_steps=12)).all()
    assert pipeline.scheduler.timesteps.tolist() == list(range(11, -1, -1))
    assert pipeline.scheduler.config.variance_type == ("learned_range" if kind == "learned" else "fixed_small")
    if kind == "pixel":
        again = DDIMPipeline.from_pretrained(str(tmp_path / "out"))
        again.set_progress_bar_config(disable=True)
        theirs = drawn(again, batch_size=2, num_inference_steps=4, use_clipped_model_output=True)
        assert np.abs(theirs - ours(backbone, 4)).max() < 1.01


@pytest.mark.parametrize("kind", ["pixel", *LATENT])
@pytest.mark.parametrize(("timesteps", "steps"), [(12, 4), (12, 5)])
def test_the_cards_call_runs(kind: str, timesteps: int, steps: int, tmp_path: Path) -> None:
    """Oracle: diffusers takes the call, and draws what was measured where the remark says so."""
    backbone, pipeline = exported(kind, tmp_path, {"num_train_timesteps": timesteps, "beta_start": 0.02, "beta_end": 0.5})
    backbone.class_names = backbone.class_names[:2]
    call = pipeline_call(backbone, sampler="ddim", steps=steps, guidance_scale=1.0)
    arguments = {word.arg: ast.literal_eval(word.value) for word in ast.parse(f"f({call.arguments})", mode="eval").body.keywords}  # type: ignore[attr-defined]
    assert arguments["num_inference_steps"] == (12 if kind == "pixel" else 4)
    arguments |= {"batch_size": 2} if "batch_size" in arguments else {}
    images = drawn(pipeline, **arguments)
    assert np.isfinite(images).all()
    if "drawn so" in call.remark:
        assert (kind != "pixel", steps) == (True, 4)
        labels = torch.tensor([0, 1]) if kind == "dit" else None
        assert np.abs(images - ours(backbone, steps, labels)).max() < 1.01
    else:
        assert f"by DDIM in {steps} steps, as `fewshot-ray sample" in call.remark
        assert f"--sampler ddim --steps {steps}" in call.remark


def test_the_cards_remark_names_another_sampler() -> None:
    """Oracle: by hand."""
    call = pipeline_call(tiny_backbone(), sampler="dpm++", steps=20, guidance_scale=1.0)
    assert call.arguments == "batch_size=16, num_inference_steps=1000"
    assert call.remark.startswith("These are DDPM's 1000 random steps. The metrics below are of images drawn by DPM-Solver++ in 20 steps, ")
