"""Small pipelines of every kind on 3x16x16 images, with seeded random weights, as diffusers or the original authors save them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

from tests.models.adm_reference import AdmReference
from tests.models.adm_reference import seeded as reference_weights
from tests.tiny_diffusion import TINY_DIT, TINY_UNET

BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
AUTOENCODER = {**BLOCKS, "block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 16}


def seeded(make: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def unet(**changes: Any) -> UNet2DModel:
    network: UNet2DModel = seeded(lambda: UNet2DModel(**{**TINY_UNET, **changes}))
    return network


def write_pixel(folder: Path) -> None:
    """A pixel DDPM."""
    DDPMPipeline(unet(sample_size=16, in_channels=3, out_channels=3), DDPMScheduler()).save_pretrained(str(folder))


def write_learned(folder: Path) -> None:
    """A pixel DDPM with a learned variance."""
    scheduler = DDPMScheduler(variance_type="learned_range")
    DDPMPipeline(unet(sample_size=16, in_channels=3, out_channels=6), scheduler).save_pretrained(str(folder))


def write_ldm_vq(folder: Path) -> None:
    """As CompVis/ldm-celebahq-256: three latent channels, quantised when they are decoded."""
    vq = seeded(lambda: VQModel(**AUTOENCODER, latent_channels=3, num_vq_embeddings=64, vq_embed_dim=3, scaling_factor=1.0))
    scheduler = DDIMScheduler(clip_sample=False)
    LDMPipeline(vqvae=vq, unet=unet(in_channels=3, out_channels=3), scheduler=scheduler).save_pretrained(str(folder))


def write_ldm_kl(folder: Path) -> None:
    """A latent model over a KL autoencoder."""
    kl = seeded(lambda: AutoencoderKL(**AUTOENCODER, latent_channels=4))
    scheduler = DDIMScheduler(clip_sample=False)
    LDMPipeline(vqvae=kl, unet=unet(in_channels=4, out_channels=4), scheduler=scheduler).save_pretrained(str(folder))


def write_dit(folder: Path, **changes: Any) -> None:
    """As facebook/DiT-XL-2-256: class-conditional, with a learned variance."""
    kl = seeded(lambda: AutoencoderKL(**AUTOENCODER, latent_channels=4))
    transformer = seeded(lambda: DiTTransformer2DModel(**{**TINY_DIT, "num_embeds_ada_norm": 1000, **changes}))
    scheduler = DDIMScheduler(clip_sample=False)
    DiTPipeline(transformer, kl, scheduler).save_pretrained(str(folder))


WRITERS: dict[str, Callable[[Path], None]] = {
    "pixel": write_pixel,
    "learned": write_learned,
    "ldm-vq": write_ldm_vq,
    "ldm-kl": write_ldm_kl,
    "dit": write_dit,
}


def write_dinov2(folder: Path) -> None:
    """A tiny DINOv2, for Psi."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, initializer_range=0.2)
    seeded(lambda: Dinov2Model(config)).save_pretrained(folder)


def write_adm(path: Path) -> dict[str, Any]:
    """A P2-like state dict with a learned variance; `source.adm` for it."""
    network = reference_weights(
        AdmReference(
            width=32,
            multiples=(1, 1),
            layers=1,
            attention_levels=(1,),
            head_channels=16,
            residual_resampling=True,
            channels_out=6,
        ),
        seed=0,
    )
    torch.save(network.state_dict(), path)
    return {
        "weights": str(path),
        "image_size": 16,
        "num_channels": 32,
        "num_res_blocks": 1,
        "channel_mult": "1,1",
        "attention_resolutions": "8",
        "num_head_channels": 16,
        "resblock_updown": True,
        "learn_sigma": True,
    }
