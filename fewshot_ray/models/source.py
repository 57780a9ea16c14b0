"""Reading a pre-trained pipeline from a folder, a hub or a bucket, or building a network from scratch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, ModelMixin, UNet2DModel, VQModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from fewshot_ray.copies import local_copies
from fewshot_ray.data.inputs import Listed, file_state, listed_folder
from fewshot_ray.errors import UserError
from fewshot_ray.models.adaptor import AdaptorUNet2DModel
from fewshot_ray.models.adm import AdmConfig, load_adm
from fewshot_ray.models.adm_unet import AdmUNet2DModel
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.configuration import (
    MISFIT,
    check_config,
    check_range,
    check_scale,
    check_shapes,
    check_sizes,
    first_line,
    is_size,
    not_finite,
    quiet,
    try_samplers,
    unsaid,
)
from fewshot_ray.models.drawable import check_drawable, write_out
from fewshot_ray.models.fastgan import FastGanDiscriminator, FastGanGenerator
from fewshot_ray.models.misplaced import SINGLE, WEIGHTS, what_it_is
from fewshot_ray.models.schedule import alphas_cumprod
from fewshot_ray.models.scheduler import read_scheduler
from fewshot_ray.models.stylegan2 import StyleGan2Discriminator, StyleGan2Generator
from fewshot_ray.patience import client_mistakes, is_missing, patiently, place_errors, reason
from fewshot_ray.spec.wording import show
from fewshot_ray.storage import is_remote, open_place


class Parts(NamedTuple):
    """The folders of a pipeline's components."""

    network: str
    autoencoder: str | None = None


PIPELINES = {
    "DDPMPipeline": Parts("unet"),
    "DDIMPipeline": Parts("unet"),
    "LDMPipeline": Parts("unet", "vqvae"),
    "DiTPipeline": Parts("transformer", "vae"),
}
GAN_PIPELINE = ["gan_pipeline", "GanPipeline"]
"""An exported GAN's class in model_index.json: the file and the class in it."""
# The second row: early pipelines (google/ddpm-*) keep network and scheduler beside model_index.json, not in folders of their own.
PIPELINE_FILES = ("model_index.json", "unet/*", "transformer/*", "vae/*", "vqvae/*", "scheduler/*", "generator/*", "discriminator/*")
PIPELINE_FILES_FLAT = ("config.json", "diffusion_pytorch_model*", "scheduler_config.json")
NETWORKS: dict[str, type[ModelMixin]] = {
    "UNet2DModel": UNet2DModel,
    "AdaptorUNet2DModel": AdaptorUNet2DModel,
    "AdmUNet2DModel": AdmUNet2DModel,
    "DiTTransformer2DModel": DiTTransformer2DModel,
    "Transformer2DModel": DiTTransformer2DModel,  # as the published DiT checkpoints call it
    "AutoencoderKL": AutoencoderKL,
    "VQModel": VQModel,
    "StyleGan2Generator": StyleGan2Generator,
    "StyleGan2Discriminator": StyleGan2Discriminator,
    "FastGanGenerator": FastGanGenerator,
    "FastGanDiscriminator": FastGanDiscriminator,
}
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
        if place.endswith(WEIGHTS):
            raise UserError(f"source.model: {place} is {SINGLE}")
        return _download(place)
    place = place.removeprefix("file://")
    # os.path, unlike pathlib, says False for a name that is too long or a user that doesn't exist.
    if os.path.isdir(os.path.expanduser(place)):
        folder = Path(os.path.realpath(os.path.expanduser(place)))
        if not (folder / "model_index.json").exists() and (found := what_it_is(folder)):
            raise UserError(f"source.model: {place} is {found}")
        return folder
    if os.path.exists(os.path.expanduser(place)) and (found := what_it_is(Path(os.path.expanduser(place)))):
        raise UserError(f"source.model: {place} is {found}")
    if place.count("/") == 1 and not place.startswith((".", "/", "~")):
        return _from_hub(place, revision)
    raise UserError(f"source.model: no folder '{place}'; a diffusers pipeline's folder, a hub id (owner/name) or a URL would be right")


def source_files(place: str, revision: str | None = None) -> Listed | None:
    """The files that a pipeline is read from; None for an embedded model. Raises UserError."""
    if place in EMBEDDED_MODELS:
        return None
    if not is_remote(place):
        folder = locate_pipeline(place, revision)
        return listed_folder(place, folder, (path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_wanted(path, folder)))
    _, listing, wanted = _remote_files(place)

    def locate() -> dict[str, Path]:
        folder = _download(place)
        return {name: folder / name for name in wanted.values()}

    return Listed(place, {name: file_state(listing[remote]) for remote, name in wanted.items()}, locate)


def _is_wanted(path: Path, folder: Path) -> bool:
    name = path.relative_to(folder).as_posix()
    return any(fnmatch(name, kind) for kind in (*PIPELINE_FILES, *PIPELINE_FILES_FLAT)) and path.is_file()


def _remote_files(url: str) -> tuple[Any, dict[str, dict[str, Any]], dict[str, str]]:
    """The filesystem, the listing by remote path, and the pipeline's files that are read, by their names in it."""
    try:
        filesystem, path = open_place(url)
        listing: dict[str, dict[str, Any]] = patiently(lambda: filesystem.find(path, detail=True), url)
    except place_errors() as error:
        raise _unreadable(url, error) from error
    names = {remote: remote.removeprefix(filesystem._strip_protocol(path)).lstrip("/") for remote in sorted(listing)}
    kinds = (*PIPELINE_FILES, *PIPELINE_FILES_FLAT)
    wanted = {remote: name for remote, name in names.items() if any(fnmatch(name, kind) for kind in kinds)}
    if "model_index.json" not in wanted.values():
        try:
            patiently(lambda: filesystem.info(path), url)  # some clients' `find` returns nothing where they should raise
        except place_errors() as error:
            if not is_missing(error):
                raise _unreadable(url, error) from error
        raise UserError(f"source.model: no model_index.json at {url}; give the folder that save_pretrained wrote")
    return filesystem, listing, wanted


def _download(url: str) -> Path:
    filesystem, listing, wanted = _remote_files(url)
    try:
        return local_copies(url, filesystem, listing, wanted)
    except place_errors() as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> UserError:
    return UserError(f"source.model: {url} can't be read ({reason(error)}); a folder or URL you can read would be right")


def _from_hub(name: str, revision: str | None) -> Path:
    try:
        with client_mistakes():
            return Path(snapshot_download(name, revision=revision, allow_patterns=[*PIPELINE_FILES, *PIPELINE_FILES_FLAT]))
    except HFValidationError as error:
        raise UserError(
            f"source.model: '{name}' is no folder here and no hub id; owner/name or a pipeline's folder would be right"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"source.revision: {name} has no revision '{revision}'; a branch, tag or commit of it would be right") from error
    except GatedRepoError as error:
        raise UserError(f"source.model: {name} is gated; accept its terms on the hub and set HF_TOKEN (or run `hf auth login`)") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"source.model: no model '{name}' on the hub (or it is private: set HF_TOKEN), and no folder of that name"
        ) from error
    except place_errors() as error:
        raise UserError(
            f"source.model: '{name}' is no folder here and the hub can't be reached ({reason(error)[:200]}); a pipeline's folder, or the "
            "hub when it answers, would be right"
        ) from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        raise UserError(f"source.model: {folder} has no {name}; give the folder of a diffusers pipeline (save_pretrained writes one)")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"source.model: {path} isn't JSON ({first_line(error)}); give the folder of a diffusers pipeline") from error
    if not isinstance(content, dict):
        raise UserError(f"source.model: {path} holds no JSON object; give the folder of a diffusers pipeline")
    return content


def load_backbone(place: str, revision: str | None = None) -> Backbone:
    """The pipeline's network, autoencoder and schedule, on the CPU in float32, in eval mode. Raises UserError."""
    folder = locate_pipeline(place, revision)
    index = read_json(folder, "model_index.json")
    if index.get("_class_name") == GAN_PIPELINE:
        raise UserError(f"source.model: {place} is an exported GAN; as `weights` of its architecture under source.gan it would be right")
    parts = PIPELINES.get(str(index.get("_class_name")))
    if parts is None:
        raise UserError(f"source.model: {place} is a {index.get('_class_name')}, which isn't supported; one of {', '.join(PIPELINES)} is")
    network = load_component(_component(folder, parts.network), place)
    autoencoder = None
    if parts.autoencoder:
        coder = _component(folder, parts.autoencoder)
        model = load_component(coder, place)
        check_scale(model.config, coder)
        autoencoder = Autoencoder(model)
    scheduler = _load_scheduler(_component(folder, "scheduler"), index)
    backbone = checked_backbone(network, scheduler, place, autoencoder)
    backbone.class_names = _class_names(network, index.get("id2label"))
    return backbone


def _class_names(network: ModelMixin, id2label: Any) -> tuple[str, ...]:
    """The pipeline's class names by number; empty for an unconditional network."""
    if not isinstance(network, DiTTransformer2DModel):
        return ()
    if isinstance(id2label, dict) and id2label:
        if not all(re.fullmatch(r"[0-9]{1,9}", key) for key in id2label):
            raise UserError(
                "source.model: model_index.json's id2label has keys that are no numbers of classes; '0', '1', ... would be right"
            )
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    return tuple(str(number) for number in range(int(network.config.num_embeds_ada_norm or 0)))


def _load_scheduler(folder: Path, index: dict[str, Any]) -> DDPMScheduler:
    named = index.get("scheduler")
    named = named[1] if isinstance(named, list) and len(named) == 2 else None
    return read_scheduler(read_json(folder, "scheduler_config.json"), named, folder / "scheduler_config.json")


def _component(folder: Path, name: str) -> Path:
    """A component's folder: the sub-folder of that name, else the pipeline's folder itself."""
    return folder / name if (folder / name).is_dir() else folder


def load_component(folder: Path, place: str) -> ModelMixin:
    """The network in a folder, of the class that its configuration names. Raises UserError."""
    config = read_json(folder, "config.json")
    kind = NETWORKS.get(str(config.get("_class_name")))
    if kind is None:
        raise UserError(f"source.model: {place} has a {config.get('_class_name')}, which isn't supported; {', '.join(NETWORKS)} are")
    with quiet():
        check_config(kind, config, folder)
        settings = unsaid(kind, config, folder)
        try:
            network, report = kind.from_pretrained(str(folder), output_loading_info=True, low_cpu_mem_usage=False, **settings)
        except (OSError, SafetensorError, UnpicklingError, *MISFIT) as error:
            raise UserError(f"source.model: the weights in {folder} can't be read ({first_line(error)}); save the pipeline anew") from error
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(fault) or [])
        if names:
            raise UserError(
                f"source.model: the weights in {folder} don't fit its config.json: {len(names)} {fault.replace('_', ' ')}, "
                f"first {names[0]}; use the weights this configuration was saved with"
            )
    return network.float().eval()


def checked_backbone(network: ModelMixin, scheduler: Any, place: str, autoencoder: Autoencoder | None = None) -> Backbone:
    """A backbone of checked parts. Raises UserError where its kind isn't supported."""
    config = network.config
    if config.out_channels not in (None, config.in_channels, 2 * config.in_channels):
        raise UserError(
            f"source.model: {place} has {config.in_channels} channels in and {config.out_channels} out; "
            "as many out as in, or twice as many (a learned variance), would be right"
        )
    if config.out_channels == 2 * config.in_channels and scheduler.config.variance_type == "learned":
        raise UserError(
            f"source.model: the network at {place} predicts its variance itself (variance_type learned), which isn't supported; "
            "one that predicts where it lies in its range (learned_range) would be right"
        )
    if getattr(config, "class_embed_type", None) is not None or getattr(config, "num_class_embeds", None) is not None:
        raise UserError(
            f"source.model: {place} is a class-conditional {type(network).__name__}, which isn't supported; "
            "an unconditional one, or a class-conditional DiT, would be right"
        )
    if not is_size(config.sample_size):
        raise UserError(
            f"source.model: the network's configuration at {place} has no sample_size in pixels ({show(config.sample_size)}); "
            "the images' size, or height and width, would be right"
        )
    alpha_bar = alphas_cumprod(scheduler.config)
    if alpha_bar.ndim != 1 or len(alpha_bar) == 0:
        raise UserError(f"source.model: {place}'s schedule has no timesteps; num_train_timesteps of 1 or more would be right")
    if not 0 < float(alpha_bar.min()) <= float(alpha_bar.max()) < 1:
        raise UserError(
            f"source.model: {place}'s schedule ends without any signal or begins without noise (zero terminal SNR), "
            "which isn't supported yet; a schedule with 0 < alpha_bar < 1 would be right"
        )
    if autoencoder and autoencoder.model.config.latent_channels != config.in_channels:
        raise UserError(
            f"source.model: {place}'s autoencoder has {autoencoder.model.config.latent_channels} latent channels and its network takes "
            f"{config.in_channels}; as many would be right"
        )
    for part in (network, autoencoder.model if autoencoder else None):
        if part is not None and (name := not_finite(part)) is not None:
            raise UserError(f"source.model: the weights of {place} aren't all finite numbers, first {name}; undamaged ones would be right")
    write_out(network)
    backbone = Backbone(network, scheduler, autoencoder=autoencoder)
    with quiet():
        check_shapes(backbone, place)
        try_samplers(backbone, place)
        check_drawable(backbone, place)
        check_range(backbone, place)
    return backbone


def build_backbone(config: dict[str, Any], *, seed: int) -> Backbone:
    """A network from scratch: `config` holds `UNet2DModel`'s arguments and, under `scheduler`, `DDPMScheduler`'s. Raises UserError."""
    settings = dict(config)
    scheduler_settings = settings.pop("scheduler", {})
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        try:
            check_sizes(scheduler_settings)
            scheduler = DDPMScheduler(**scheduler_settings)
            with torch.device("meta"):
                check_sizes(settings)
                UNet2DModel(**settings)
            unet = UNet2DModel(**settings)
        except MISFIT as error:
            raise UserError(f"source.build: {first_line(error)}; UNet2DModel's arguments would be right") from error
    return checked_backbone(unet.eval(), scheduler, "source.build")


def convert_adm(config: AdmConfig) -> Backbone:
    """An original checkpoint's network and schedule. Raises UserError."""
    unet, scheduler = load_adm(config)
    return checked_backbone(unet, scheduler, config.weights)


def weights_hash(unet: torch.nn.Module) -> str:
    """sha256 over names, shapes and bytes of all weights, 16 hex digits; what a cached stage's key depends on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unet.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
