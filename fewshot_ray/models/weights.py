"""Weight files: where they come from, read without running anything in them, known by their hash."""

import argparse
import hashlib
import os
import pickle
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from fewshot_ray.copies import local_copy
from fewshot_ray.errors import UserError
from fewshot_ray.patience import place_errors, reason
from fewshot_ray.storage import open_place

# What the two readers raise on files with flipped, missing or foreign bytes (found by trying thousands of them).
DAMAGE = (
    SafetensorError,
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    OverflowError,
    MemoryError,
    OSError,
)


@dataclass(frozen=True)
class Published:
    """Weights that a library's authors serve."""

    url: str
    """The file's name ends in the first 8 hex digits of its sha256."""
    network: str
    field: str
    """The field of the file that names a local copy."""


@dataclass(frozen=True)
class Weights:
    """A file's tensors; `hash` is the first 12 hex digits of the file's sha256."""

    tensors: Mapping[str, Tensor]
    hash: str
    place: str


INCEPTION = Published(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "FID's Inception-V3",
    "evaluate.extractor_weights",
)
VGG16 = Published("https://download.pytorch.org/models/vgg16-397923af.pth", "torchvision's VGG16", "evaluate.lpips_weights")
ALEXNET = Published("https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "torchvision's AlexNet", "evaluate.lpips_weights")
SQUEEZENET = Published(
    "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth", "torchvision's SqueezeNet 1.1", "evaluate.lpips_weights"
)


def find_weights(published: Published, place: str | None) -> Weights:
    """The weights at `place`, or with None those in torch hub's cache, downloaded to it where they are not there yet.

    With a place given nothing is ever downloaded. Raises UserError where the weights cannot be had.
    """
    if place is not None:
        return read_weights(place)
    filename = published.url.rsplit("/", 1)[1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / filename
    if not cached.exists():
        hash_prefix = cached.stem.rsplit("-", 1)[1]
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(published.url, str(cached), hash_prefix, progress=False)
        except (OSError, RuntimeError) as error:  # no network, no disk; another hash
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{published.network} could not be downloaded ({reason}); "
                f"put {filename} from {published.url} at {cached}, or name a copy of it in {published.field}"
            ) from error
    return read_weights(str(cached))


def read_weights(place: str) -> Weights:
    """A .safetensors file, or a state dict saved by torch (read with weights_only: no code in it runs), local or at any fsspec URL.

    Raises UserError where there is no such file, or it is something else.
    """
    content = read_content(place)
    try:
        tensors = load_safetensors(content) if place.endswith(".safetensors") else _load_state_dict(content)
    except DAMAGE as error:
        raise UserError(f"{place}: not a file of weights; .safetensors, or a state dict saved by torch, is right") from error
    return Weights(tensors, hashlib.sha256(content).hexdigest()[:12], place)


def read_content(place: str) -> bytes:
    """A file's bytes, local or at any fsspec URL. Raises UserError where there is no such file."""
    path = place if "://" in place else os.path.expanduser(place)
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise IsADirectoryError  # or a pipe, or a device, of which there is no end
        filesystem, path = open_place(path)
        return (Path(path) if isinstance(filesystem, LocalFileSystem) else local_copy(place, filesystem, path)).read_bytes()
    except place_errors() as error:
        raise UserError(f"{place}: these weights cannot be read ({reason(error)}); a file that exists is right") from error


def read_state_dicts(place: str) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a training checkpoint that torch saved, by name; what else it holds (settings, optimisers) is left.

    A file that is one network's state dict itself is that, under the name "". Raises UserError where there is no such file, or it is
    something else.
    """
    content = read_content(place)
    try:
        # Checkpoints of training scripts keep their command line: names and values, and no code.
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore", UserWarning)
            loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict):
            raise ValueError("not a mapping")
    except DAMAGE as error:
        raise UserError(f"{place}: not a checkpoint; a file saved by torch, with state dicts in it, is right") from error
    if _is_state_dict(loaded):
        return {"": loaded}
    return {str(name): dict(value) for name, value in loaded.items() if _is_state_dict(value)}


def serialised(weights: Weights) -> BytesIO:
    """The tensors as a torch file in memory, for a library that reads its own file and would unpickle anything in it."""
    buffer = BytesIO()
    torch.save(dict(weights.tensors), buffer)
    buffer.seek(0)
    return buffer


def _load_state_dict(content: bytes) -> dict[str, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, on files of another kind: what is wrong is said in one line
        loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    if not _is_state_dict(loaded):
        raise ValueError("not a mapping of names to tensors")
    state: dict[str, Tensor] = loaded
    return state


def _is_state_dict(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(name, str) and isinstance(item, Tensor) and _is_plain(item) for name, item in value.items())


def _is_plain(tensor: Tensor) -> bool:
    """Numbers in memory, one beside the other: neither sparse nor nested, quantised or without content."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized and tensor.device.type == "cpu"
