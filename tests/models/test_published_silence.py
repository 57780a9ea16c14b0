"""What the published configurations leave out: read as their authors' models were trained, whatever diffusers would fill in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel, VQModel

from fewshot_ray.errors import UserError
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.configuration import unsaid
from fewshot_ray.models.pipeline import save_pipeline
from fewshot_ray.models.schedule import alphas_cumprod
from fewshot_ray.models.scheduler import read_scheduler
from fewshot_ray.models.source import load_backbone
from tests.models import published
from tests.models.published import Config, settings
from tests.tiny_pipelines import WRITERS

HERE = Path("here")
LINEAR, SCALED = np.linspace(1e-4, 0.02, 1000), np.linspace(0.0015**0.5, 0.0195**0.5, 1000) ** 2


@pytest.mark.parametrize(
    ("config", "betas", "clipped"),
    [
        (published.DDPM_SCHEDULER, LINEAR, True),
        (published.LDM_CELEBAHQ_SCHEDULER, SCALED, False),
        (published.DIT_SCHEDULER, LINEAR, False),
    ],
)
def test_schedulers(config: Config, betas: npt.NDArray[np.float64], clipped: bool) -> None:
    """Oracle: the publications: Ho et al. 2020 (1e-4 to .02), Rombach et al. 2022 (linear in sqrt(beta), .0015 to .0195), all of eps."""
    scheduler = read_scheduler(config, config["_class_name"], HERE)
    np.testing.assert_allclose(alphas_cumprod(scheduler.config), np.cumprod(1 - betas), rtol=1e-12)
    found = scheduler.config
    assert (found.prediction_type, found.num_train_timesteps, found.thresholding) == ("epsilon", 1000, False)
    assert found.clip_sample == clipped
    assert found.clip_sample_range == 1.0


@pytest.mark.parametrize(
    ("said", "meant"), [({"predict_epsilon": False}, "sample"), ({"predict_epsilon": True}, "epsilon"), ({}, "epsilon")]
)
def test_a_file_from_before_prediction_type(said: Config, meant: str) -> None:
    """Oracle: diffusers 0.10, which wrote `predict_epsilon`, and read False as "sample"."""
    assert read_scheduler({**published.DDPM_SCHEDULER, **said}, None, HERE).config.prediction_type == meant
    both = {**published.DDPM_SCHEDULER, **said, "prediction_type": "v_prediction"}
    assert read_scheduler(both, None, HERE).config.prediction_type == "v_prediction"


@pytest.mark.parametrize(
    ("kind", "config", "scale"),
    [
        (VQModel, published.LDM_CELEBAHQ_VQ, 1.0),
        (VQModel, {**published.LDM_CELEBAHQ_VQ, "scaling_factor": 0.18215}, 0.18215),
        (AutoencoderKL, published.DIT_VAE, 0.18215),
        (AutoencoderKL, {**published.DIT_VAE, "scaling_factor": 0.5, "shift_factor": 0.1}, 0.5),
    ],
)
def test_latents(kind: type[Any], config: Config, scale: float) -> None:
    """Oracle: LDM's configurations: `scale_factor` is 1 where celebahq-ldm-vq-4 doesn't set it; .18215 is Stable Diffusion's."""
    with torch.device("meta"):
        autoencoder = Autoencoder(kind(**settings(config), **unsaid(kind, config, HERE)))
    assert autoencoder.scale == scale
    assert autoencoder.shift == config.get("shift_factor", 0.0)


def test_attention_heads_and_sizes() -> None:
    """Oracle: the publications: one head in DDPM, heads of 32 channels in LDM, 16 heads in DiT-XL; the sizes of x_t."""
    with torch.device("meta"):
        ddpm, ddpm_256 = UNet2DModel(**settings(published.DDPM_CIFAR10)), UNet2DModel(**settings(published.DDPM_256))
        ldm = UNet2DModel(**settings(published.LDM_CELEBAHQ_UNET))
        dit = DiTTransformer2DModel(**settings(published.DIT_TRANSFORMER))
    assert [ddpm.down_blocks[1].attentions[0].heads, ddpm_256.mid_block.attentions[0].heads] == [1, 1]
    assert ldm.mid_block.attentions[0].heads == 896 // 32
    assert dit.transformer_blocks[0].attn1.heads == 16
    assert [network.config.sample_size for network in (ddpm, ddpm_256, ldm, dit)] == [32, 256, 64, 32]


def without(folder: Path, part: str, key: str) -> None:
    path = folder / part / "config.json"
    config = json.loads(path.read_text())
    del config[key]
    path.write_text(json.dumps(config))


def test_a_silent_vq_model_is_exported_with_its_scale(tmp_path: Path) -> None:
    """Oracle: 1, in the file that diffusers reads."""
    WRITERS["ldm-vq"](tmp_path / "source")
    without(tmp_path / "source", "vqvae", "scaling_factor")
    backbone = load_backbone(str(tmp_path / "source"))
    assert backbone.autoencoder is not None
    assert backbone.autoencoder.scale == 1.0
    save_pipeline(backbone, backbone.network, tmp_path / "exported")
    assert json.loads((tmp_path / "exported" / "vqvae" / "config.json").read_text())["scaling_factor"] == 1.0


@pytest.mark.parametrize(("kind", "part"), [("pixel", "unet"), ("dit", "transformer")])
def test_a_silent_size_is_refused(kind: str, part: str, tmp_path: Path) -> None:
    """Oracle: the rule for messages."""
    WRITERS[kind](tmp_path)
    without(tmp_path, part, "sample_size")
    with pytest.raises(UserError, match=r"^source\.model: [^\n]* has no sample_size[^\n]* would be right$"):
        load_backbone(str(tmp_path))
