"""Recognises what is at a path in place of a pipeline's folder, and says what to do."""

from __future__ import annotations

import json
import struct
from pathlib import Path

WEIGHTS = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors")
LORA_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_config.json")
MOST_HEADER_BYTES = 100 * 2**20
"""The safetensors library's own bound on a header."""
FUSE = (
    "a LoRA, which changes a pipeline and is none; the folder of that pipeline, with the LoRA fused in (load_lora_weights, fuse_lora, "
    "save_pretrained), would be right"
)
SINGLE = (
    "a single file of weights, without the networks' configurations; the folder that save_pretrained writes of the pipeline "
    "(DiffusionPipeline.from_single_file reads some), source.adm for an original ADM checkpoint or source.gan for a GAN's would be right"
)
SWEEP = "a sweep's folder; `fewshot-ray export {} OUT` writes its result as a pipeline, and OUT would be right"


def what_it_is(path: Path) -> str | None:
    """A description of what is at a path where no pipeline is, and what would be right; None where it isn't recognised."""
    if path.is_dir():
        try:
            names = {entry.name for entry in path.iterdir()}
        except OSError:  # reported where it is read
            return None
        if {"study.journal", "trials"} & names and "spec.yaml" in names:
            return SWEEP.format(path)
        if {"trial.json", "spec.yaml"} <= names:
            return f"a trial of a sweep; `fewshot-ray export {path.parent.parent} OUT --trial {path.name}` writes it as a pipeline"
        if names & set(LORA_FILES):
            return FUSE
        return None
    if not path.is_file():
        return None
    if path.suffix.lower() == ".safetensors" and any("lora" in name.lower() for name in _tensor_names(path)):
        return FUSE
    return SINGLE if path.suffix.lower() in WEIGHTS else "a file; the folder of a diffusers pipeline would be right"


def _tensor_names(path: Path) -> list[str]:
    """The tensors' names in a .safetensors file, from its header; empty for a damaged one."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size)) if size <= MOST_HEADER_BYTES else {}
    except (OSError, ValueError, struct.error, RecursionError):
        return []
    return list(header) if isinstance(header, dict) else []
