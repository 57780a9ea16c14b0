"""Exports: diffusers loads each and draws with it, whatever a source's configuration leaves out or says in another way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from fewshot_ray.errors import UserError
from fewshot_ray.models.adm import AdmConfig
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.gan_source import load_gan, save_gan
from fewshot_ray.models.parameters import PARAMS, tune
from fewshot_ray.models.pipeline import drawn_by_ddpm, pipeline_call, save_pipeline
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import convert_adm, load_backbone
from tests.tiny_diffusion import images
from tests.tiny_gan import tiny_fastgan, tiny_stylegan2
from tests.tiny_pipelines import WRITERS, unet, write_adm, write_dit

STEPS = 2
Change = Callable[[Path], None]


def network(**settings: Any) -> Change:
    """Settings of the network's configuration."""

    def change(folder: Path) -> None:
        edit(folder / ("transformer" if (folder / "transformer").exists() else "unet") / "config.json", settings)

    return change


def autoencoder(**settings: Any) -> Change:
    """Settings of the autoencoder's."""
    return lambda folder: edit(folder / ("vae" if (folder / "vae").exists() else "vqvae") / "config.json", settings)


def scheduler(**settings: Any) -> Change:
    """Settings of the scheduler's."""
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", settings)


def edit(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def learned_variance(folder: Path) -> None:
    """A latent U-Net that predicts a variance too."""
    unet(in_channels=4, out_channels=8).save_pretrained(folder / "unet")


def without_scale(folder: Path) -> None:
    """As published VQ autoencoders are."""
    path = folder / "vqvae" / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "scaling_factor"}))


def fixed_variance(folder: Path) -> None:
    """A transformer with as many channels out as in, which its configuration needn't say."""
    write_dit(folder, out_channels=None)


def drawn(backbone: Backbone, folder: Path) -> np.ndarray:
    """Two images by the loaded export, uint8's range, `[2, C, H, W]`."""
    pipeline = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"class_labels": [0, 1], "guidance_scale": 1.0} if backbone.class_names else {"batch_size": 2}
    noise = torch.Generator().manual_seed(3)
    made: np.ndarray = pipeline(**arguments, generator=noise, num_inference_steps=STEPS, output_type="np").images
    return made.transpose(0, 3, 1, 2) * 255


def check_draws(backbone: Backbone, folder: Path) -> None:
    """Size and range and, where diffusers steps by DDIM as the metrics do, the images themselves."""
    made = drawn(backbone, folder)
    assert made.shape == (2, backbone.channels, *backbone.size)
    assert np.isfinite(made).all()
    if not drawn_by_ddpm(backbone):
        noise = torch.randn((2, *backbone.shape), generator=torch.Generator().manual_seed(3))
        labels = torch.tensor([0, 1]) if backbone.class_names else None
        ours = sample(backbone, backbone.network, noise, sampler="ddim", steps=STEPS, labels=labels)
        assert np.abs(made - ours.float().numpy()).max() < 1.01


RUNS: dict[str, tuple[str, Change]] = {
    "pixels, a pair": ("pixel", network(sample_size=[16, 16])),
    "pixels, wide": ("pixel", network(sample_size=[16, 32])),
    "pixels, learned, high": ("learned", network(sample_size=[32, 16])),
    "pixels, a learned variance that isn't there": ("pixel", scheduler(variance_type="learned_range")),
    "pixels, an original checkpoint's variance": ("pixel", scheduler(variance_type="learned")),
    "pixels, a fixed variance beside a learned": ("learned", scheduler(variance_type="fixed_large")),
    "pixels, a variance by its log": ("pixel", scheduler(variance_type="fixed_large_log")),
    "pixels, no variance given": ("learned", scheduler(variance_type=None)),
    "pixels, thresholded": ("pixel", scheduler(thresholding=True, sample_max_value=None)),
    "pixels, spacing of null": ("pixel", scheduler(timestep_spacing=None, steps_offset=None, clip_sample=None)),
    "pixels, sigmoid betas": ("pixel", scheduler(beta_schedule="sigmoid")),
    "VQ, a pair": ("ldm-vq", network(sample_size=[8, 8])),
    "VQ, no scale": ("ldm-vq", without_scale),
    "VQ, thresholded": ("ldm-vq", scheduler(thresholding=True, clip_sample=True, clip_sample_range=None)),
    "KL, a pair": ("ldm-kl", network(sample_size=[8, 8])),
    "KL, the autoencoder's a pair": ("ldm-kl", autoencoder(sample_size=[16, 16])),
    "KL, shifted": ("ldm-kl", autoencoder(shift_factor=0.4, scaling_factor=0.5)),
    "KL, a shift of null": ("ldm-kl", autoencoder(shift_factor=None)),
    "KL, a learned variance": ("ldm-kl", learned_variance),
    "DiT, its size left to the class": ("dit", lambda folder: None),
    "DiT, out_channels of null": ("dit", fixed_variance),
    "DiT, shifted": ("dit", autoencoder(shift_factor=0.4)),
    "DiT, v": ("dit", scheduler(prediction_type="v_prediction")),
}


@pytest.mark.parametrize("case", RUNS)
def test_diffusers_draws_with_what_it_loads(case: str, tmp_path: Path) -> None:
    """Oracle: diffusers' own pipeline, for two steps, and our sampler where it is diffusers' too; read again it is the same model."""
    kind, change = RUNS[case]
    WRITERS[kind](tmp_path / "source")
    change(tmp_path / "source")
    backbone = load_backbone(str(tmp_path / "source"))
    save_pipeline(backbone, backbone.network, tmp_path / "out")  # type: ignore[arg-type]
    check_draws(backbone, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert config["timestep_spacing"] == "trailing"
    assert "DDPM's 1000 random" in pipeline_call(backbone, sampler="ddim", steps=50, guidance_scale=1).remark or not drawn_by_ddpm(backbone)
    again = load_backbone(str(tmp_path / "out"))
    assert (again.shape, again.size, again.learned_variance) == (backbone.shape, backbone.size, backbone.learned_variance)
    if backbone.autoencoder is not None and again.autoencoder is not None:
        same_codes(backbone.autoencoder, again.autoencoder, backbone.shape)


def same_codes(one: Autoencoder, other: Autoencoder, shape: tuple[int, int, int]) -> None:
    pictures, latents = images(2, channels=3, size=16), torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(other.encode(pictures).mean, one.encode(pictures).mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other.decode(latents), one.decode(latents), atol=1e-5, rtol=1e-4)
    assert other.shift == 0


REFUSED: dict[str, tuple[str, Change, str]] = {
    "VQ, wide": (
        "ldm-vq",
        network(sample_size=[8, 16]),
        "has latents of 8x16, and LDMPipeline, as which it would be exported, draws squares",
    ),
    "KL, high": ("ldm-kl", network(sample_size=[16, 8]), "has latents of 16x8, and LDMPipeline"),
    "VQ, betas of DDPMScheduler alone": ("ldm-vq", scheduler(beta_schedule="sigmoid"), "diffusers' DDIMScheduler can't draw with"),
    "pixels, the variance itself": ("learned", scheduler(variance_type="learned"), "predicts its variance itself"),
    "pixels, no size": ("pixel", network(sample_size=None), "has no sample_size in pixels"),
    "latents, no size": ("ldm-vq", network(sample_size=None), "has no sample_size in pixels"),
    "pixels, one side in a list": ("pixel", network(sample_size=[16]), "has no sample_size in pixels"),
    "a scale of null": ("ldm-kl", autoencoder(scaling_factor=None), "has nothing as scaling_factor"),
    "clipping to null": ("pixel", scheduler(clip_sample_range=None), "schedule can't be sampled from"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cant_be_drawn_with_is_refused_when_it_is_read(case: str, tmp_path: Path) -> None:
    """Oracle: one line, before anything is trained."""
    kind, change, message = REFUSED[case]
    WRITERS[kind](tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as refused:
        load_backbone(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_shift_that_cant_be_put_into_a_convolution_is_refused(tmp_path: Path) -> None:
    """As in autoencoders of later models. Oracle: one line."""
    WRITERS["ldm-kl"](tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert loaded.autoencoder is not None
    model = loaded.autoencoder.model
    model.register_to_config(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1)
    model.quant_conv, model.post_quant_conv = None, None
    model.save_pretrained(str(tmp_path / "vqvae"))
    with pytest.raises(UserError, match=r"has shift_factor 0\.1, which LDMPipeline, as which it would be exported, ignores"):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize("params", ["full", "adaptor"])
def test_an_original_checkpoint_and_an_adaptor_are_drawn_with(params: str, tmp_path: Path) -> None:
    """Oracle: diffusers, with the code that is shipped beside the weights."""
    if params == "full":
        backbone = convert_adm(AdmConfig(**write_adm(tmp_path / "p2.pt")))
    else:
        WRITERS["pixel"](tmp_path / "source")
        network(sample_size=[16, 32])(tmp_path / "source")
        backbone = load_backbone(str(tmp_path / "source"))
    tuned = tune(backbone.network, params, PARAMS[params][0](), seed=0)
    save_pipeline(backbone, tuned.merge(), tmp_path / "out")
    check_draws(backbone, tmp_path / "out")


@pytest.mark.parametrize("gan", [tiny_stylegan2(16, channels=3), tiny_fastgan(64, channels=1)], ids=["stylegan2", "fastgan"])
def test_gans_draw(gan: Any, tmp_path: Path) -> None:
    """Oracle: the generator itself, from the same latents."""
    save_gan(gan, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(str(tmp_path), trust_remote_code=True)
    latents = torch.randn((2, gan.latent_dim), generator=torch.Generator().manual_seed(0))
    made = pipeline(latents=latents, output_type="np").images
    with torch.no_grad():
        image = load_gan(str(tmp_path)).generator(latents).clamp(-1, 1)
    assert np.allclose(made, ((image + 1) / 2).permute(0, 2, 3, 1).numpy(), atol=1e-5)
    assert len(pipeline(3).images) == 3
