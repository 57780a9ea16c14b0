"""Vision transformers in the format of Hugging Face: where their folders are, and how they are read."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from fewshot_ray.errors import UserError
from fewshot_ray.models.weights import DAMAGE
from fewshot_ray.patience import client_mistakes, place_errors

SAFETENSORS = ("config.json", "*.safetensors", "*.safetensors.index.json")
PICKLED = "pytorch_model.bin"
"""Read, without running anything in it, where a model has no safetensors (as OpenAI's CLIP at 336x336)."""
FILES = (*SAFETENSORS, PICKLED)
"""The patterns of the files that are read in a folder."""
HASHED_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Transformer:
    """A published network."""

    name: str
    """What it is called in messages."""
    class_name: str
    """Its class in transformers."""
    hub_id: str
    """The model read where none is given; folders of the same kind are right as well."""


DINOV2 = Transformer("DINOv2", "Dinov2Model", "facebook/dinov2-large")
CLIP = Transformer("CLIP", "CLIPVisionModelWithProjection", "openai/clip-vit-large-patch14-336")


def located(kind: Transformer, place: str, field: str) -> Path:
    """The folder at `place`, or the hub's model of that id, from its cache or downloaded to it; `field` is what names it in messages.

    Raises UserError where there is neither.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    try:
        with client_mistakes():
            found = Path(snapshot_download(place, allow_patterns=list(SAFETENSORS)))
            return found if _weight_files(found) else Path(snapshot_download(place, allow_patterns=list(FILES)))
    except HFValidationError as error:
        raise UserError(f"{field}: {place!r} is no folder here and no hub id; a folder of {kind.hub_id} or owner/name is right") from error
    except place_errors() as error:
        raise UserError(
            f"{kind.name} could not be downloaded ({_first_line(error)}); put config.json and model.safetensors from "
            f"https://huggingface.co/{place} in a folder, and name it in {field}"
        ) from error


def load_transformer(kind: Transformer, folder: Path, field: str) -> Any:
    """A fresh network with the weights in `folder`, float32, on the CPU. Raises UserError where they can't be read or don't fit.

    Nothing in the folder is run: a pickled file is read with weights_only.
    """
    import transformers

    safe = any(file.suffix == ".safetensors" for file in _weight_files(folder))
    try:
        with _quiet_transformers():
            network, report = getattr(transformers, kind.class_name).from_pretrained(
                str(folder), output_loading_info=True, dtype=torch.float32, use_safetensors=safe, ignore_mismatched_sizes=True
            )
    except DAMAGE as error:
        raise UserError(f"{field}: {folder} can't be read ({_first_line(error)}); a folder of {kind.hub_id} is right") from error
    unfilled = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if unfilled:
        raise UserError(
            f"{field}: the weights in {folder} don't fit {kind.name} as its config.json has it ({unfilled[0]}); "
            f"a folder of {kind.hub_id} is right"
        )
    return network


def weights_hash(folder: Path) -> str:
    """The first 12 hex digits of the sha256 over the folder's weight files, in the order of their names."""
    digest = hashlib.sha256()
    for file in _weight_files(folder):
        with file.open("rb") as content:
            while part := content.read(HASHED_AT_ONCE):
                digest.update(part)
    return digest.hexdigest()[:12]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or [file for file in (folder / PICKLED,) if file.is_file()]


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
