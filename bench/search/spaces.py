"""What is recorded for the replays of searches: on each benchmark a space of configurations, and the run's file of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scipy.stats import qmc

Tree = dict[str, Any]


@dataclass(frozen=True)
class Between:
    """A number in a range; on a log scale or, where it is whole, rounded."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float | int:
        """The value at a share of the range in [0, 1)."""
        if self.whole:
            return int(self.low + share * (self.high - self.low + 1))
        if self.log:
            return float(f"{math.exp(math.log(self.low) + share * math.log(self.high / self.low)):.6g}")
        return float(f"{self.low + share * (self.high - self.low):.6g}")


@dataclass(frozen=True)
class OneOf:
    """One of some values."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """The value at a share of the list."""
        return self.values[int(share * len(self.values))]


@dataclass(frozen=True)
class Space:
    """A benchmark with its space. `tree` makes the run's file of a configuration on one split of the images."""

    name: str
    dimensions: Mapping[str, Between | OneOf]
    tree: Callable[[Mapping[str, Any], int], Tree]
    configurations: int
    splits: int
    """The seeds 0, 1, ... of the split, of the training and of its evaluation's noise."""
    used_by: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The methods that use a dimension which not all do."""

    def uses(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a configuration depends on its value in a dimension."""
        return name not in self.used_by or values["method"] in self.used_by[name]

    def configuration(self, number: int) -> dict[str, Any]:
        """The values of a configuration, the same with every number of them: scrambled Sobol points spread over the space."""
        points = qmc.Sobol(len(self.dimensions), scramble=True, rng=0).random_base2(9)
        return {name: dimension.at(float(share)) for (name, dimension), share in zip(self.dimensions.items(), points[number], strict=True)}


def _digits(values: Mapping[str, Any], split: int) -> Tree:
    settings: Mapping[str, Tree] = {
        "ant": {"noise_steps": values["noise_steps"], "noise_step_size": values["noise_step_size"], "guidance": 0, "noise_norm": "moments"},
        "sdft": {"lambda_distill": values["lambda_distill"], "gamma_distill": 0.5, "lambda_aux": 0},
        "sadm": {"eta": values["eta"], "warmup_steps": 1_000_000, "timestep": "image"},
        "finetune": {},
    }
    return {
        "name": "digits",
        "seed": split,
        "source": {"model": "embedded://digits-ddpm", "images": "embedded://digits/source"},
        "target": {
            "images": f"embedded://digits/shots?seed={split}",
            "holdout": f"embedded://digits/validation?seed={split}",
            "test": f"embedded://digits/test?seed={split}",
        },
        "method": {name: settings[name] for name in values["method"].split("+")},
        "train": {
            "steps": 240,
            "batch_size": 20,
            "lr": values["lr"],
            "flip": False,
            "ema": {"decay": values["ema"], "warmup": True},
            "params": {"lora": {"rank": 4}} if values["params"] == "lora" else values["params"],
        },
        "evaluate": {
            "every": 20,
            "samples": 200,
            "final_samples": 200,
            "loss_draws": 320,
            "sampler": "dpm++",
            "sampler_steps": 12,
            "grid_images": 0,
            "keep_samples": True,
            "metrics": [
                *("holdout_loss", "fd", "kid", "pairwise_distance", "intra_distance", "memorisation"),
                *("precision", "recall", "density", "coverage", "modes"),
            ],
        },
    }


DIGITS = Space(
    name="digits",
    dimensions={
        "lr": Between(1e-4, 2e-2, log=True),
        "method": OneOf(("finetune", "ant", "sdft", "ant+sdft", "sadm")),
        "params": OneOf(("full", "full", "bitfit", "lora")),
        "noise_steps": Between(1, 3, whole=True),
        "noise_step_size": Between(0.005, 0.1, log=True),
        "lambda_distill": Between(0.01, 1.0, log=True),
        "eta": Between(0.1, 3.0, log=True),
        "ema": OneOf((0.95, 0.98, 0.99)),
    },
    tree=_digits,
    configurations=150,
    splits=3,
    used_by={
        "noise_steps": ("ant", "ant+sdft"),
        "noise_step_size": ("ant", "ant+sdft"),
        "lambda_distill": ("sdft", "ant+sdft"),
        "eta": ("sadm",),
    },
)


def _stylegan2(values: Mapping[str, Any], split: int) -> Tree:
    gan = {"resolution": 8, "channels": 1, "latent_dim": 64, "mapping_layers": 4, "channel_base": 512, "channel_max": 64}
    return {
        "name": "stylegan2",
        "seed": split,
        "source": {"gan": {"stylegan2": gan}},
        "target": {
            "images": f"embedded://digits/shots?seed={split}",
            "holdout": f"embedded://digits/validation?seed={split}",
            "test": f"embedded://digits/test?seed={split}",
        },
        "method": {"mixdl": {name: values[name] for name in ("lambda_g", "lambda_d", "alpha")}},
        "train": {"steps": 480, "batch_size": 16, "lr": values["lr"], "flip": False, "gan": {"r1": values["r1"], "path_length": 0}},
        "evaluate": {
            "every": 60,
            "samples": 200,
            "final_samples": 200,
            "paths": 20,
            "grid_images": 0,
            "keep_samples": True,
            "metrics": [
                *("fd", "kid", "pairwise_distance", "intra_distance", "memorisation"),
                *("precision", "recall", "density", "coverage", "modes", "path_uniformity"),
            ],
        },
        "search": {"objectives": {"kid": "min"}},
    }


STYLEGAN2 = Space(
    name="stylegan2",
    dimensions={
        "lr": Between(5e-4, 1e-2, log=True),
        "lambda_g": Between(10, 5000, log=True),
        "lambda_d": Between(0.1, 10, log=True),
        "alpha": Between(0.1, 10, log=True),
        "r1": Between(0.001, 1.0, log=True),
    },
    tree=_stylegan2,
    configurations=40,
    splits=2,
)

SPACES = {space.name: space for space in (DIGITS, STYLEGAN2)}
HELD_OUT = 10
"""Images that a trial is judged by: as many as shots, one a class, of the 200 kept for validation."""
