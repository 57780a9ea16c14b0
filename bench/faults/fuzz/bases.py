"""The valid files that fuzz.py spoils, all of tiny networks: pictures, pipelines, an ADM checkpoint, run files, two sweeps."""

from __future__ import annotations

import io
import json
import shutil
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
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
from PIL import Image
from rich.console import Console
from torch import Tensor

from fewshot_ray.cluster.actors import PROBLEM, ROW, trial_results
from fewshot_ray.cluster.driver import write_results
from fewshot_ray.models import adm
from fewshot_ray.models.gan_source import GANS, build_gan, save_gan
from fewshot_ray.report.progress import Progress
from fewshot_ray.report.tensorboard import Boards
from fewshot_ray.search.job import Job
from fewshot_ray.search.journal import Journal
from fewshot_ray.search.opened import planned_sweep, put_on_record
from fewshot_ray.search.sweep import Sweep
from fewshot_ray.search.sweep_folder import EvaluationRow
from fewshot_ray.spec.document import parse_document, to_yaml
from fewshot_ray.spec.sections import FileSpec

BLOCKS = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
UNET = {**BLOCKS, "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
CODER: dict[str, Any] = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
CODER |= {"block_out_channels": (8, 8), "norm_num_groups": 4, "sample_size": 16}
DIT = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 4, "out_channels": 8, "sample_size": 8}
ADM: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "attention_resolutions": "8",
    "num_head_channels": 16,
    "resblock_updown": True,
    "learn_sigma": True,
}
GAN: dict[str, dict[str, Any]] = {
    "stylegan2": {"resolution": 8, "channels": 1, "latent_dim": 8, "mapping_layers": 2, "channel_base": 64, "channel_max": 8},
    "fastgan": {"resolution": 64, "channels": 1, "latent_dim": 8, "width": 8},
}
INTERRUPTED_AT = ("t0002", 3)
"""Trial and step."""


@dataclass
class Bases:
    """Valid files below `folder`; the run files' trees by name."""

    folder: Path
    trees: dict[str, dict[str, Any]] = field(default_factory=dict)

    def adm_tensors(self) -> dict[str, Tensor]:
        """The ADM checkpoint's."""
        return dict(torch.load(self.folder / "adm.pt", weights_only=True))

    def gan_tensors(self) -> dict[str, dict[str, Tensor]]:
        """The StyleGAN2 checkpoint's, by network."""
        return dict(torch.load(self.folder / "gan.pt", weights_only=True))


def make_bases(folder: Path) -> Bases:
    """Everything, in some ten seconds."""
    torch.manual_seed(0)
    bases = Bases(folder)
    _write_pictures(folder)
    _write_pipelines(folder)
    _write_adm(folder / "adm.pt")
    _write_gans(folder)
    bases.trees = _trees(folder)
    _write_sweeps(bases)
    return bases


def picture(seed: int) -> Image.Image:
    """Stripes in one of five sizes."""
    size = [(24, 20), (20, 24), (40, 24), (16, 16), (33, 33)][seed % 5]
    image = Image.new("RGB", size, (37 * seed % 256, 91 * seed % 256, 200 - 17 * seed % 200))
    for x in range(0, size[0], 3):
        image.putpixel((x, (x * seed) % size[1]), (seed * 50 % 256, x * 7 % 256, 90))
    return image


def _write_pictures(folder: Path) -> None:
    for name, seeds in {"photos": range(6), "test": range(6, 9)}.items():
        (folder / name).mkdir()
        for seed in seeds:
            path = folder / name / f"{seed}{('.png', '.jpg', '.webp', '.png', '.png')[seed % 5]}"
            mode = ("RGB", "RGB", "RGB", "RGBA", "P")[seed % 5]
            exif = Image.Exif()
            exif[0x0112] = 6
            picture(seed).convert(mode).save(path, exif=exif)
    photos = sorted((folder / "photos").iterdir())
    with zipfile.ZipFile(folder / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in photos:
            archive.write(path, path.name)
    table = pa.table({"image": [{"bytes": path.read_bytes(), "path": path.name} for path in photos], "label": list(range(6))})
    pyarrow.parquet.write_table(table, folder / "photos.parquet")


def _write_pipelines(folder: Path) -> None:
    pixels = {"sample_size": 16, "in_channels": 3, "out_channels": 3}
    DDPMPipeline(UNet2DModel(**{**UNET, **pixels}), DDPMScheduler()).save_pretrained(str(folder / "pixel"))
    learned = UNet2DModel(**{**UNET, **pixels, "out_channels": 6})
    DDPMPipeline(learned, DDPMScheduler(variance_type="learned_range")).save_pretrained(str(folder / "learned"))
    vq = VQModel(**CODER, latent_channels=3, num_vq_embeddings=8, vq_embed_dim=3)
    latents = UNet2DModel(**{**UNET, "sample_size": 8, "in_channels": 3, "out_channels": 3})
    LDMPipeline(vqvae=vq, unet=latents, scheduler=DDIMScheduler(clip_sample=False)).save_pretrained(str(folder / "ldm"))
    transformer = DiTTransformer2DModel(**DIT, num_embeds_ada_norm=10)
    dit = DiTPipeline(transformer, AutoencoderKL(**CODER, latent_channels=4), DDIMScheduler(clip_sample=False))
    dit.save_pretrained(str(folder / "dit"))
    index = folder / "dit" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": {str(number): f"class {number}" for number in range(10)}}))
    # As early pipelines on the hub are: everything in one folder.
    shutil.copytree(folder / "pixel", folder / "flat")
    for name in ("unet", "scheduler"):
        for path in (folder / "flat" / name).iterdir():
            path.rename(folder / "flat" / path.name)
        (folder / "flat" / name).rmdir()


def _write_adm(path: Path) -> None:
    """Noise under the names and shapes that the reader expects: how the network computes is no matter here."""
    config = adm.AdmConfig(weights=str(path), **ADM)
    with torch.device("meta"):
        network = adm.adm_network(config)
    torch.save({name: 0.02 * torch.randn(shape) for name, shape in adm._expected_shapes(config, network).items()}, path)


def _write_gans(folder: Path) -> None:
    """A StyleGAN2 as a checkpoint of the common layout and as a pipeline, and a FastGAN."""
    stylegan2, fastgan = (build_gan(GANS[name](**settings), seed=0) for name, settings in GAN.items())
    torch.save({"g_ema": stylegan2.generator.state_dict(), "d": stylegan2.discriminator.state_dict()}, folder / "gan.pt")
    save_gan(stylegan2, folder / "stylegan2")
    save_gan(fastgan, folder / "fastgan")


def _trees(folder: Path) -> dict[str, dict[str, Any]]:
    short: dict[str, Any] = {
        "name": "mine",
        "source": {"model": str(folder / "pixel")},
        "target": {"images": str(folder / "photos"), "holdout": {"crossfit": 2}},
        "method": {"sdft": {}},
        "train": {"steps": 4, "batch_size": 4},
        "evaluate": {"every": 2, "samples": 0, "grid_images": 0, "metrics": ["holdout_loss"], "loss_draws": 8},
        "search": {"trials": 2},
        "storage": "sweeps",
    }
    ranges: dict[str, Any] = {
        **short,
        "method": {"sdft": "search", "ant": {"noise_steps": {"int": [1, 3]}, "guidance": 0}},
        "train": {**short["train"], "lr": {"log": [1e-5, 1e-3]}, "params": {"lora": {"rank": {"choice": [2, 4]}}}},
        "search": {
            "trials": 4,
            "objectives": {"holdout_loss": "min"},
            "constraints": {"holdout_loss": "<= 9"},
            "scheduler": {"asha": {"metric": "holdout_loss", "grace_steps": 2}},
            "confirm": {"top": 1, "seeds": [1, 2]},
        },
    }
    full = FileSpec.model_validate({**short, "source": {**short["source"], "images": str(folder / "test")}}).model_dump(mode="json")
    full["source"] = {key: value for key, value in full["source"].items() if key not in ("build", "adm")}
    full["target"] |= {"test": str(folder / "test"), "holdout": 2}
    full["method"] = {"ddpm_pa": {}, "ant": {"noise_steps": 2, "guidance": 0}}
    build = {**UNET, "sample_size": 16, "scheduler": {"num_train_timesteps": 100, "beta_schedule": "squaredcos_cap_v2"}}
    build = {key: list(value) if isinstance(value, tuple) else value for key, value in build.items()}
    dit = {**short["target"], "labels": "one"}
    gan: dict[str, Any] = {
        **{key: short[key] for key in ("name", "target", "search", "storage")},
        "source": {"gan": {"stylegan2": {"weights": str(folder / "gan.pt")}}},
        "method": {"mixdl": "search", "ewc": {"fisher_samples": 2}},
        "train": {"steps": 4, "batch_size": 4, "gan": {"ada": {}, "r1": {"log": [0.1, 1]}}},
        "evaluate": {"every": 2, "samples": 8, "grid_images": 0, "paths": 2, "metrics": ["kid", "path_uniformity", "modes"]},
    }
    return {
        "short": short,
        "ranges": ranges,
        "full": full,
        "build": {**short, "source": {"build": build}, "method": {"finetune": {}}},
        "adm": {**short, "source": {"adm": {"weights": str(folder / "adm.pt"), **ADM}}, "train": {**short["train"], "params": "bitfit"}},
        "dit": {**short, "source": {"model": str(folder / "dit")}, "target": dit},
        "gan": gan,
        "scratch": {**gan, "source": {"gan": {"stylegan2": GAN["stylegan2"]}}, "method": {"mixdl": {}, "n_div": {}}},
    }


def _write_sweeps(bases: Bases) -> None:
    """`sweeps/finished`, and `sweeps/interrupted`, whose last trial of the search lacks the last of its evaluations."""
    tree: dict[str, Any] = {
        **bases.trees["short"],
        "name": "finished",
        "target": {**bases.trees["short"]["target"], "test": str(bases.folder / "test")},
        "train": {"steps": 4, "batch_size": 4, "lr": {"log": [1e-5, 1e-3]}, "params": {"choice": ["bitfit", "full"]}},
        "evaluate": {**bases.trees["short"]["evaluate"], "every": 1, "grid_images": 1, "sampler_steps": 2, "final_samples": 2},
        "search": {**bases.trees["ranges"]["search"], "trials": 3, "confirm": {"top": 1, "seeds": [1]}},
        "storage": str(bases.folder / "sweeps"),
    }
    opened = put_on_record(planned_sweep(parse_document(to_yaml(tree), "finished.yaml")))
    folder = bases.folder / "sweeps" / "finished"
    with Progress(4, console=Console(file=io.StringIO())) as progress:
        sweep = Sweep(
            opened.document, opened.file, opened.folder, Journal(opened.folder.folder), progress, Boards(opened.folder), concurrent=1
        )
        while isinstance(job := sweep.next_job(), Job):
            for result in trial_results({"job": job.to_json(), "part": {"cpus": 1, "gpus": 0}, "folder": str(folder)}):
                if PROBLEM in result:
                    raise RuntimeError(result[PROBLEM])
                sweep.evaluated(job.id, EvaluationRow(**json.loads(result[ROW]), time=time.time()))
                if (job.id, json.loads(result[ROW])["step"]) == INTERRUPTED_AT:
                    _copy_interrupted(folder)
            sweep.ended(job.id)
    write_results(opened)


def _copy_interrupted(folder: Path) -> None:
    trial, step = INTERRUPTED_AT
    checkpoints = folder / "trials" / trial / "checkpoints"
    kept = [f"step_{number:06d}" for number in (step - 1, step)]
    while sorted(path.name for path in checkpoints.iterdir()) != kept or not (checkpoints / kept[-1] / "manifest.json").exists():
        time.sleep(0.01)  # another thread writes and removes them
    other = folder.with_name("interrupted")
    shutil.copytree(folder, other)
    for name in ("spec.yaml", "study.journal"):
        (other / name).write_text((other / name).read_text().replace("finished", "interrupted").replace("trials: 3", "trials: 5"))
