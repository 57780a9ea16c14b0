"""Reading a pre-trained pipeline from a folder, a hub or a bucket, or building a network from scratch."""

from __future__ import annotations

import hashlib
import json
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import fsspec
import torch
from diffusers import DDPMScheduler, UNet2DModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.storage import is_remote

SUPPORTED_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
EMBEDDED_MODELS = {"embedded://digits-ddpm": "digits-ddpm"}


def locate_pipeline(place: str, revision: str | None = None) -> Path:
    """The pipeline's folder on this machine's disk, downloaded where it is remote.

    `place` is a folder, a hub id (`google/ddpm-cat-256`), an fsspec URL, or `embedded://digits-ddpm`. Raises UserError.
    """
    if place.startswith("embedded://"):
        if place not in EMBEDDED_MODELS:
            raise UserError(f"source.model: '{place}' isn't embedded; {', '.join(EMBEDDED_MODELS)} is")
        return Path(str(files("fewshot_ray.models") / "embedded" / EMBEDDED_MODELS[place]))
    if is_remote(place):
        return _download(place)
    if Path(place).expanduser().is_dir():
        return Path(place).expanduser().resolve()
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        return _from_hub(place, revision)
    raise UserError(f"source.model: no folder '{place}'; a diffusers pipeline's folder, a hub id (owner/name) or a URL would be right")


def _download(url: str) -> Path:
    cache = Path(tempfile.gettempdir()) / "fewshot-ray-models" / hashlib.sha256(url.encode()).hexdigest()[:16]
    filesystem, path = fsspec.core.url_to_fs(url)
    if not filesystem.exists(f"{path}/model_index.json"):
        raise UserError(f"source.model: no model_index.json at {url}; give the folder that save_pretrained wrote")
    for remote in filesystem.find(path):
        local = cache / remote.removeprefix(path).lstrip("/")
        if not local.exists() or local.stat().st_size != filesystem.size(remote):
            local.parent.mkdir(parents=True, exist_ok=True)
            part = local.with_name(f"{local.name}.{hashlib.sha256(str(id(local)).encode()).hexdigest()[:8]}.part")
            filesystem.get_file(remote, str(part))
            part.replace(local)
    return cache


def _from_hub(name: str, revision: str | None) -> Path:
    patterns = ["model_index.json", "unet/*", "scheduler/*"]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise UserError(f"source.model: {name} is gated; accept its terms on the hub and set HF_TOKEN (or run `hf auth login`)") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"source.model: no model '{name}' on the hub (or it is private: set HF_TOKEN), and no folder of that name"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, ConnectionError) as error:
        raise UserError(
            f"source.model: '{name}' is no folder here and the hub can't be reached; give a pipeline's folder, or go online"
        ) from error


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(f"source.model: {folder} has no {name}; give the folder of a diffusers pipeline (save_pretrained writes one)")
    try:
        content = json.loads(path.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"source.model: {path} isn't JSON ({error}); give the folder of a diffusers pipeline") from error
    if not isinstance(content, dict):
        raise UserError(f"source.model: {path} holds no JSON object; give the folder of a diffusers pipeline")
    return content


def load_backbone(place: str, revision: str | None = None) -> Backbone:
    """The pipeline's network and schedule, on the CPU in float32, in eval mode. Raises UserError."""
    folder = locate_pipeline(place, revision)
    index = _read_json(folder, "model_index.json")
    pipeline = index.get("_class_name")
    if pipeline not in SUPPORTED_PIPELINES:
        raise UserError(f"source.model: {place} is a {pipeline}, which isn't supported yet; {' or '.join(SUPPORTED_PIPELINES)} is")
    config = _read_json(folder, "unet/config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise UserError(f"source.model: {place} has a {config.get('_class_name')}, which isn't supported yet; UNet2DModel is")
    _read_json(folder, "scheduler/scheduler_config.json")
    unet = _load_unet(folder, place)
    scheduler = DDPMScheduler.from_pretrained(str(folder), subfolder="scheduler")
    return checked_backbone(unet, scheduler, place)


def _load_unet(folder: Path, place: str) -> UNet2DModel:
    try:
        unet, report = UNet2DModel.from_pretrained(str(folder), subfolder="unet", output_loading_info=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"source.model: the weights in {place}/unet can't be read ({reason}); save the pipeline anew") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind) or [])
        if names:
            raise UserError(
                f"source.model: the weights in {place}/unet don't fit its config.json: {len(names)} {kind.replace('_', ' ')}, "
                f"first {names[0]}; use the weights this configuration was saved with"
            )
    return unet.float().eval()


def checked_backbone(unet: UNet2DModel, scheduler: Any, place: str) -> Backbone:
    """A backbone, refused where its kind isn't supported yet. Raises UserError."""
    if unet.config.out_channels != unet.config.in_channels:
        raise UserError(
            f"source.model: {place} has {unet.config.in_channels} channels in and {unet.config.out_channels} out "
            "(a learned variance?), which isn't supported yet; as many out as in would be right"
        )
    if unet.config.class_embed_type is not None or unet.config.num_class_embeds is not None:
        raise UserError(f"source.model: {place} is class-conditional, which isn't supported yet; an unconditional model would be right")
    if unet.config.sample_size is None:
        raise UserError(f"source.model: {place}/unet/config.json has no sample_size; the images' size in pixels would be right")
    return Backbone(unet, scheduler)


def build_backbone(config: dict[str, Any], *, seed: int) -> Backbone:
    """A network from scratch: `config` holds `UNet2DModel`'s arguments and, under `scheduler`, `DDPMScheduler`'s. Raises UserError."""
    settings = dict(config)
    scheduler_settings = settings.pop("scheduler", {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            unet = UNet2DModel(**settings)
            scheduler = DDPMScheduler(**scheduler_settings)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"source.build: {str(error).splitlines()[0]}; UNet2DModel's arguments would be right") from error
    return checked_backbone(unet.eval(), scheduler, "source.build")


def weights_hash(unet: torch.nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights, 16 hex digits; what a cached stage's key depends on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
