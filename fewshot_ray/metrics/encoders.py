"""Psi of SADM's structure term: networks from images to features, differentiable and trainable.

The extractors of `extractors.py` only evaluate; these are trained, so every call gives a separate network.
torchmetrics and transformers are imported only when needed (they take seconds).
"""

from __future__ import annotations

import copy
import difflib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors import inception_network, load_extractor, resize_rgb
from fewshot_ray.models.weights import INCEPTION, find_weights
from fewshot_ray.patience import client_mistakes, place_errors

ENCODERS = ("digits", "inception", "dinov2")
DINOV2 = "facebook/dinov2-small"
DINOV2_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
INCEPTION_LAYERS = (
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
"""In the order of torch-fidelity's forward pass, up to the pool features."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module):
    """Images `[b, C, H, W]` in [-1, 1], grey or RGB -> float32 features `[b, D]`, with gradients to both images and parameters.

    `train()` leaves it in eval mode: training changes its parameters, never the statistics of its BatchNorm.
    """

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever `mode` is; returns itself."""
        return super().train(False)


class DigitEncoder(Encoder):
    """The bundled digit network's penultimate layer, D = 64; 1x8x8 images only."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        """Features `[b, 64]` of images `[b, 1, 8, 8]` in [-1, 1]. Raises UserError on images of another size or with colour."""
        if images.shape[1:] != (1, 8, 8):
            size = "x".join(str(side) for side in images.shape[1:])
            raise UserError(f"method.sadm.encoder: 'digits' reads 1x8x8 images, not {size}; 'inception' is right for these")
        features: Tensor = self.trunk(images)
        return features.float()


class InceptionEncoder(Encoder):
    """Inception-V3 as FID uses it, D = 2048: what `InceptionExtractor` computes, without its rounding to 8 bits."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """Features `[b, 2048]` of images `[b, C, H, W]` in [-1, 1], resized to 299x299."""
        pixels = resize_rgb((images + 1) * 127.5, 299)
        features: Tensor = self.layers((pixels - 128) / 128)
        return features.flatten(1).float()


class Dinov2Encoder(Encoder):
    """DINOv2's class token after the final layer norm (Oquab et al. 2023), D = 384 for the small network, at 224x224."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features `[b, D]` of images `[b, C, H, W]` in [-1, 1], resized to 224x224."""
        pixels = resize_rgb((images + 1) * 127.5, 224)
        tokens: Tensor = self.network((pixels / 255 - self.mean) / self.std).last_hidden_state
        return tokens[:, 0].float()


def load_encoder(name: str, *, device: str | torch.device, weights: str | None, field: str = "method.sadm.encoder_weights") -> nn.Module:
    """A fresh `Encoder` called `name`, one of ENCODERS, on `device`, in eval mode; every parameter it uses requires a gradient.

    `weights` is read instead of the library's own: a file for 'inception', a folder or hub id for 'dinov2'; `field` is what it is called
    in messages. Raises UserError on an unknown name and where the weights can't be loaded.
    """
    if name == "digits":
        if weights is not None:
            raise UserError(f"{field}: {weights!r} is given, but those of 'digits' are bundled; leave the field out")
        encoder: Encoder = _digit_encoder()
    elif name == "inception":
        encoder = _inception_encoder(weights, field)
    elif name == "dinov2":
        encoder = _dinov2_encoder(weights or DINOV2, field)
    else:
        nearest = difflib.get_close_matches(name, ENCODERS, n=1, cutoff=0.0)[0]
        raise UserError(f"method.sadm.encoder: there is no {name!r}; {', '.join(ENCODERS)} are right (did you mean {nearest}?)")
    return encoder.to(device).eval()


def _digit_encoder() -> DigitEncoder:
    shared: Any = load_extractor("digits", device="cpu")
    return DigitEncoder(copy.deepcopy(shared.network.trunk).requires_grad_())


def _inception_encoder(place: str | None, field: str) -> InceptionEncoder:
    network = inception_network(find_weights(replace(INCEPTION, field=field), place))
    layers = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in INCEPTION_LAYERS))
    return InceptionEncoder(layers.requires_grad_())


def _dinov2_encoder(place: str, field: str) -> Dinov2Encoder:
    folder = _locate_dinov2(place, field)
    from transformers import Dinov2Model

    try:
        with _quiet_transformers():
            network, report = Dinov2Model.from_pretrained(
                str(folder), output_loading_info=True, dtype=torch.float32, use_safetensors=True, ignore_mismatched_sizes=True
            )
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError, LookupError) as error:  # of damaged files
        raise UserError(f"{field}: {folder} can't be read ({_first_line(error)}); a folder of {DINOV2} is right") from error
    unfilled = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unfilled:
        raise UserError(
            f"{field}: the weights in {folder} don't fit DINOv2 as its config.json has it ({unfilled[0]}); a folder of {DINOV2} is right"
        )
    network.requires_grad_()
    if network.embeddings.mask_token is not None:  # used for masked images only: it would never receive a gradient
        network.embeddings.mask_token.requires_grad_(False)
    return Dinov2Encoder(network)


def _locate_dinov2(place: str, field: str) -> Path:
    """The folder at `place`, or the hub's model of that id, from its cache or downloaded to it."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    try:
        with client_mistakes():
            return Path(snapshot_download(place, allow_patterns=list(DINOV2_FILES)))
    except HFValidationError as error:
        raise UserError(f"{field}: {place!r} is no folder here and no hub id; a folder of {DINOV2} or owner/name is right") from error
    except place_errors() as error:
        raise UserError(
            f"DINOv2 could not be downloaded ({_first_line(error)}); put {DINOV2_FILES[0]} and model.safetensors from "
            f"https://huggingface.co/{place} in a folder, and name it in {field}"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bar and its table of weights that don't fit, which are reported in one line here."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
