"""Every network that is built here against its publication: the number of parameters, and the shape of one layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel, VQModel
from torch import nn
from torch.nn.utils import parametrizations

from fewshot_ray.models.adm import AdmConfig, adm_network
from fewshot_ray.models.fastgan import FastGanDiscriminator, FastGanGenerator
from fewshot_ray.models.stylegan2 import StyleGan2Discriminator, StyleGan2Generator
from tests.models import published
from tests.models.published import settings

SPECTRAL = "parametrizations.weight.original"
NORMALISED = "0.parametrizations.weight.original"


class Published(NamedTuple):
    """A network, the number of its parameters, and a layer with its shape."""

    build: Callable[[], nn.Module]
    parameters: int
    layer: str
    shape: tuple[int, ...]


def adm(**flags: Any) -> Callable[[], nn.Module]:
    common = {"num_channels": 256, "num_head_channels": 64, "resblock_updown": True, "use_scale_shift_norm": True, "learn_sigma": True}
    return lambda: adm_network(AdmConfig(weights="none", **{**common, "attention_resolutions": "32,16,8", **flags}))


NETWORKS = {
    # Karras et al. 2020, configuration F: what training prints.
    "stylegan2-256-g": Published(lambda: StyleGan2Generator(256), 30_034_338, "convs.11.conv.weight", (1, 128, 128, 3, 3)),
    "stylegan2-256-d": Published(lambda: StyleGan2Discriminator(256), 28_864_129, "final_conv.0.weight", (512, 513, 3, 3)),
    "stylegan2-1024-g": Published(lambda: StyleGan2Generator(1024), 30_370_060, "convs.15.conv.weight", (1, 32, 32, 3, 3)),
    "stylegan2-1024-d": Published(lambda: StyleGan2Discriminator(1024), 29_012_513, "convs.0.0.weight", (32, 3, 1, 1)),
    # Liu et al. 2021: the sums of the layers in the authors' models.py, latents of 256.
    "fastgan-256-g": Published(lambda: FastGanGenerator(256), 29_127_846, f"ups.16.convs.{NORMALISED}", (512, 512, 3, 3)),
    "fastgan-256-d": Published(lambda: FastGanDiscriminator(256), 11_526_160, f"downs.8.main.{NORMALISED}", (512, 256, 4, 4)),
    "fastgan-512-d": Published(lambda: FastGanDiscriminator(512), 11_526_496, f"judge.{NORMALISED}", (1024, 512, 1, 1)),
    "fastgan-1024-g": Published(lambda: FastGanGenerator(1024), 29_176_512, f"to_image.{SPECTRAL}", (3, 8, 3, 3)),
    "fastgan-1024-d": Published(lambda: FastGanDiscriminator(1024), 11_528_192, f"judge.3.{SPECTRAL}", (1, 1024, 4, 4)),
    # Ho et al. 2020, appendix B: 35.7 million at 32x32, 114 million at 256x256.
    "ddpm-cifar10": Published(
        lambda: UNet2DModel(**settings(published.DDPM_CIFAR10)), 35_746_307, "down_blocks.1.attentions.0.to_q.weight", (256, 256)
    ),
    "ddpm-256": Published(
        lambda: UNet2DModel(**settings(published.DDPM_256)), 113_673_219, "mid_block.resnets.0.conv1.weight", (512, 512, 3, 3)
    ),
    # Dhariwal & Nichol 2021, tables 4 and 14: 296, 422, 554 and 559 million with the table of 1,000 classes, which is left out here
    # (1,000 x 4 num_channels); LSUN 552 million, which has none. Choi et al. 2022 (P2): 93 million.
    "adm-64": Published(
        adm(image_size=64, num_channels=192, num_res_blocks=3), 295_904_454 - 768_000, "time_embedding.linear_1.weight", (768, 192)
    ),
    "adm-128": Published(
        adm(image_size=128, num_heads=4, num_head_channels=-1), 421_529_606 - 1_024_000, "time_embedding.linear_2.weight", (1024, 1024)
    ),
    "adm-256": Published(adm(image_size=256), 553_838_086 - 1_024_000, "conv_out.weight", (6, 256, 3, 3)),
    "adm-512": Published(adm(image_size=512), 558_997_638 - 1_024_000, "conv_in.weight", (128, 3, 3, 3)),
    "p2-256": Published(
        adm(image_size=256, num_channels=128, num_res_blocks=1, attention_resolutions="16"), 93_563_910, "conv_out.weight", (6, 128, 3, 3)
    ),
    # Rombach et al. 2022, table 12: 274 million; the autoencoders as the authors' programs print them.
    "ldm-celebahq": Published(lambda: UNet2DModel(**settings(published.LDM_CELEBAHQ_UNET)), 274_056_163, "conv_in.weight", (224, 3, 3, 3)),
    "vq-f4": Published(lambda: VQModel(**settings(published.LDM_CELEBAHQ_VQ)), 55_322_782, "quantize.embedding.weight", (8192, 3)),
    "kl-f8": Published(lambda: AutoencoderKL(**settings(published.DIT_VAE)), 83_653_863, "decoder.conv_in.weight", (512, 4, 3, 3)),
}


@pytest.fixture(autouse=True)
def no_power_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectral normalisation begins with 15 of them, in Python on the device `meta`, which has no values."""
    monkeypatch.setattr(parametrizations._SpectralNorm, "_power_method", lambda norm, weight, iterations: None)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_a_layer(name: str) -> None:
    """Oracle: the publication, as it stands beside each row."""
    row = NETWORKS[name]
    with torch.device("meta"):
        network = row.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == row.parameters
    assert dict(network.named_parameters())[row.layer].shape == row.shape


def test_fastgans_projection_takes_as_many_numbers_as_mixdls() -> None:
    """Oracle: MixDL's published code for it: a linear layer of 8 x 8 x 512 inputs."""
    with torch.device("meta"):
        assert [FastGanDiscriminator(size).hidden_dim for size in (64, 128, 256, 512, 1024)] == [8 * 8 * 512] * 5


def test_dit_xl_2() -> None:
    """Oracle: 675,129,632 in Peebles & Xie 2023's code, the positions (256 of 1,152) among them.

    diffusers keeps a timestep and class embedding in each of the 28 blocks, the authors one for all.
    """
    with torch.device("meta"):
        network = DiTTransformer2DModel(**settings(published.DIT_TRANSFORMER))
    count = sum(parameter.numel() for parameter in network.parameters())
    copies = 27 * sum(parameter.numel() for parameter in network.transformer_blocks[0].norm1.emb.parameters())
    assert count - copies + 256 * 1152 == 675_129_632
    assert network.proj_out_2.weight.shape == (2 * 2 * 8, 1152)
