"""What a metric's value is computed from, and the stamp that every value carries: values of different stamps are not comparable."""

from __future__ import annotations

from collections.abc import Mapping
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
    "alignment": "nothing",
    "alignment_lpips": "nothing",
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

_ALWAYS = ("protocol", "seed", "folds")
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
    if found.made_of:
        parts = [stamp(part, measured) for part in found.made_of]
        return {name: value for name, value in measured.items() if any(name in part for part in parts)}
    of_samples = _OF_SAMPLES if found.of_samples else ("paths",) if found.family == "gan" else ()
    names = {*_ALWAYS, *_OF_NETWORK.get(found.needs, ()), *of_samples, *_OF_SHARES.get(metric, ())}
    names |= {"n_real"} if "held-out" in compared else set()
    names |= {"n_train"} if "training" in compared else set()
    return {name: value for name, value in measured.items() if name in names}
