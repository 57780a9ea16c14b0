"""Networks with random weights, of a size."""

from __future__ import annotations

import math
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, UNet2DModel

from bench.costs.step.cases import Size
from fewshot_ray.models.class_table import with_class_table, without_label_dropping


def unet(widths: tuple[int, ...], pixels: int, channels: int, size: Size) -> UNet2DModel:
    """Attention at the lowest resolution."""
    plain = len(widths) - 1
    return UNet2DModel(
        sample_size=pixels,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=size.layers,
        block_out_channels=widths,
        down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
        attention_head_dim=8,
        norm_num_groups=size.groups,
    )


def make_autoencoder(size: Size) -> AutoencoderKL:
    """Of latents with 4 channels."""
    levels = len(size.autoencoder)
    return AutoencoderKL(
        in_channels=size.channels,
        out_channels=size.channels,
        block_out_channels=size.autoencoder,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=size.layers,
        latent_channels=4,
        norm_num_groups=size.groups,
    )


def transformer(size: Size) -> DiTTransformer2DModel:
    """A DiT over latents without an autoencoder, with a new class table."""
    layers, width = size.transformer
    network = DiTTransformer2DModel(
        sample_size=size.latents,
        in_channels=4,
        num_attention_heads=4,
        attention_head_dim=width,
        num_layers=layers,
        num_embeds_ada_norm=10,
    )
    return without_label_dropping(with_class_table(network, 1))


def inception_file(folder: Path) -> str:
    """Inception-V3 with random weights, as a file that Psi is read from."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    kind = module.FeatureExtractorInceptionV3
    with patch.object(module, "load_state_dict_from_url", return_value={}), patch.object(kind, "load_state_dict"):
        network = kind("inception", ["2048"])
    state = {}
    for name, tensor in network.state_dict().items():
        he = tensor.ndim == 4  # keeps the activations' scale: tiny numbers would be slow on a CPU
        state[name] = torch.randn(tensor.shape) * math.sqrt(2 / tensor[0].numel()) if he else tensor
    path = folder / "inception.pth"
    torch.save(state, path)
    return str(path)
