"""What a metric's value is computed from, and the stamp that every value carries: values of different stamps are not comparable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from fewshot_ray.metrics.suite import METRICS, NETWORKS

Against = Literal["held-out images", "training images", "training and held-out images", "nothing"]
"""The real images that generated ones are compared with."""
Setting = str | int | float | bool

AGAINST: Mapping[str, Against] = {
    "pairwise_distance": "nothing",
    "pairwise_lpips": "nothing",
    "intra_distance": "training images",
    "intra_lpips": "training images",
    "modes": "training images",
    "modes_lpips": "training images",
    "vendi": "nothing",
    "inception_score": "nothing",
    "memorisation": "training and held-out images",
    "mifid": "training and held-out images",
    "fld": "training and held-out images",
    "fld_gap": "training and held-out images",
    "path_uniformity": "nothing",
    "ppl_uniformity": "nothing",
}
"""By metric; all others compare with held-out images alone."""

_ALWAYS = ("protocol", "seed")
_OF_NETWORK: Mapping[str, tuple[str, ...]] = {
    "features": ("extractor", "extractor_weights", "resize"),
    "perceptual": ("perceptual", "perceptual_weights", "perceptual_resize"),
    "loss": ("loss_draws",),
    **{name: (name, f"{name}_weights", f"{name}_resize") for name in NETWORKS},
}
_OF_SAMPLES = ("n_generated", "sampler", "sampler_steps", "guidance_scale")
_OF_SHARES = {"fd": ("shots_in_reference",), "intra_lpips": ("intra_cap",), "intra_distance": ("intra_cap",)}


def against(metric: str) -> Against:
    """The real images that a metric compares generated ones with."""
    return AGAINST.get(metric, "held-out images")


def stamp(metric: str, measured: Mapping[str, Setting]) -> dict[str, Setting]:
    """Those settings of `measured` (an evaluator's) that the metric's value depends on, in their order there."""
    found, compared = METRICS[metric], against(metric)
    of_samples = _OF_SAMPLES if found.of_samples else ("paths",) if found.family == "gan" else ()
    names = {*_ALWAYS, *_OF_NETWORK.get(found.needs, ()), *of_samples, *_OF_SHARES.get(metric, ())}
    names |= {"n_real"} if "held-out" in compared else set()
    names |= {"n_train"} if "training" in compared else set()
    return {name: value for name, value in measured.items() if name in names}


def sentences(names: Iterable[str], measured: Mapping[str, Setting]) -> list[str]:
    """The stamps of several metrics in words, for the foot of a table: a line each on images, sampling and networks."""
    settings: dict[str, Setting] = {}
    for name in names:
        settings |= stamp(name, measured)
    counts = {"n_generated": "generated", "n_real": "held-out", "n_train": "training"}
    images = [f"{settings[key]} {word}" for key, word in counts.items() if key in settings]
    sampling = [f"{settings[key]}{word}" for key, word in {"sampler": "", "sampler_steps": " steps"}.items() if key in settings]
    sampling += [f"guidance scale {settings['guidance_scale']}"] if "guidance_scale" in settings else []
    sampling += [f"seed {settings['seed']}"] if "seed" in settings else []
    resizes = {"extractor": "resize", **{key: f"{key}_resize" for key in ("perceptual", *NETWORKS)}}
    networks = [
        f"{settings[key]} (weights {settings[f'{key}_weights']}, resize: {settings[resize]})"
        for key, resize in resizes.items()
        if key in settings
    ]
    others = [f"{settings['loss_draws']} draws of the loss"] if "loss_draws" in settings else []
    others += [f"clusters of at most {settings['intra_cap']}"] if "intra_cap" in settings else []
    others += ["fd with the training images in the reference"] if settings.get("shots_in_reference") else []
    lines = [f"protocol {settings['protocol']}; images: {', '.join(images)}" if images else f"protocol {settings['protocol']}"]
    return [*lines, *([", ".join(sampling)] if sampling else []), *networks, *([", ".join(others)] if others else [])]
