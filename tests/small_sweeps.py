"""The files in sweeps/ at the size of a test: a tiny model of the same kind, and a few pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cli.conftest import write_pictures
from tests.tiny_pipelines import WRITERS, write_adm, write_dinov2

FILES = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
HUB = {
    "ant-ddpm": "pixel",
    "ant-ldm": "ldm-vq",
    "sdft-metfaces": "adm",
    "sdft-aahq": "adm",
    "sadm-dit": "dit",
    "compose": "pixel",
    "ten-images": "pixel",
}
"""The files whose source is somebody's weights, and what stands in for these."""
BATCH = 4
PLACES = {"cats": 0, "dogs": 10}
"""Sub-folders of pictures, each with the number of its first."""
BUILT = {"sample_size": 16, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4}
STYLEGAN2 = {"latent_dim": 16, "mapping_layers": 2, "channel_max": 16}
MOST_STYLEGAN2_PIXELS = 16
FASTGAN = {"resolution": 64, "latent_dim": 16, "width": 8}


def small(tree: Mapping[str, Any], folder: Path, *, steps: int, **train: Any) -> dict[str, Any]:
    """The tree of a file in sweeps/: its methods and parameters, for `steps` steps on a tiny model that is written into `folder`."""
    settings = {**tree["train"], **train, "steps": steps, "batch_size": BATCH}
    settings["lr_warmup_steps"] = min(settings.get("lr_warmup_steps", 0), steps // 2)
    if "fastgan" in tree["source"].get("gan", {}):
        settings["gan"] = {**settings.get("gan", {}), "reconstruction": "pixels"}  # LPIPS's weights would have to be fetched
    return {
        **tree,
        "source": source_of(tree, folder),
        "target": target_of(tree, folder),
        "method": {name: method_of(name, given, folder) for name, given in tree["method"].items()},
        "train": settings,
        "evaluate": evaluate_of(tree, steps),
        "search": {"trials": 1},
        "resources": {},
    }


def source_of(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A model of the same kind; an embedded one as it is."""
    given = dict(tree["source"])
    if "generated_images" in given:
        given["generated_images"] = 4
    if "adm" in given:
        return {"adm": {**given["adm"], **write_adm(folder / "p2.pt")}}
    if "build" in given:
        return {"build": {**given["build"], **BUILT, "block_out_channels": [8] * len(given["build"]["block_out_channels"])}}
    if "gan" in given:
        return {"gan": {name: gan_of(name, settings) for name, settings in given["gan"].items()}}
    if tree["name"] in HUB:
        kind = HUB[tree["name"]]
        WRITERS[kind](folder / "model")
        return {**given, "model": str(folder / "model")}
    return given


def gan_of(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Its settings at most so large."""
    if name == "fastgan":
        return {**settings, **FASTGAN}
    resolution = min(settings["resolution"], MOST_STYLEGAN2_PIXELS)
    return {**settings, **STYLEGAN2, "resolution": resolution, "channel_base": 16 * resolution}


def target_of(tree: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Eight pictures in two sub-folders; embedded ones as they are."""
    given = dict(tree["target"])
    if str(given["images"]).startswith("embedded://"):
        return given
    for place, first in PLACES.items():
        write_pictures(folder / "pictures" / place, 4, first=first)
    return {**given, "images": str(folder / "pictures"), "shots": 6, "holdout": 2}


def method_of(name: str, given: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    """Its settings, with as little preparation as can be; Psi trains from the second step on."""
    settings = dict(given or {})
    if name == "ant":
        settings |= {"classifier_steps": 1, "classifier_batch": 2}
    if name == "sadm":
        write_dinov2(folder / "dinov2")
        settings |= {"encoder": "dinov2", "encoder_weights": str(folder / "dinov2"), "warmup_steps": 1}
    return settings


def evaluate_of(tree: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The held-out loss alone; a GAN's images, which no other network is needed for."""
    settings = {"every": steps, "samples": 0, "grid_images": 2, "sampler_steps": 2}
    if "gan" in tree["source"]:
        return {**settings, "samples": 4, "metrics": ["pairwise_distance"]}
    return {**settings, "metrics": ["holdout_loss"], "loss_draws": 4}
