"""What claims.py compares: the benchmarks, and on each the methods' settings beside plain fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fewshot_ray.spec.document import Document
from fewshot_ray.trial.compose import TrialSpec, compose

PLAIN = "plain"
GUIDED = "ant_guided"
Tree = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One way to set a method; all arms of a benchmark have as many."""

    words: str
    method: Tree


@dataclass(frozen=True)
class Measure:
    """A value reported on the test split. `view`: what samples are seen through; the loss needs no samples."""

    name: str
    title: str
    direction: Literal["min", "max"]
    view: Literal["loss", "features", "pixels"]


MEASURES = (
    Measure("holdout_loss", "held-out loss", "min", "loss"),
    Measure("kid", "KID", "min", "features"),
    Measure("kid_pixels", "KID, pixels", "min", "pixels"),
    Measure("pairwise_distance", "pairwise distance", "max", "features"),
    Measure("pairwise_distance_pixels", "pairwise distance, pixels", "max", "pixels"),
    Measure("intra_distance", "intra-cluster distance", "max", "features"),
    Measure("memorisation", "share memorised", "min", "features"),
    Measure("memorisation_pixels", "share memorised, pixels", "min", "pixels"),
)
SAMPLE_METRICS = [measure.name for measure in MEASURES if measure.view == "features"]


@dataclass(frozen=True)
class Benchmark:
    """Images, source model and the protocol's sizes. `parts` name the seed's split with `{seed}`."""

    name: str
    source: Tree
    parts: Mapping[str, str]
    train: Tree
    """Without the learning rate."""
    evaluate: Tree
    learning_rates: tuple[float, ...]
    arms: Mapping[str, tuple[Setting, ...]]
    device: str

    @property
    def trials(self) -> int:
        """Of each arm and seed: its settings (plain: as many training seeds) at each learning rate."""
        return len(self.learning_rates) * len(self.arms[PLAIN])


def criterion(arm: str) -> str:
    """What an arm's trials and checkpoints are ordered by: guidance moves the optimum away from the held-out loss."""
    return "kid" if arm == GUIDED else "holdout_loss"


def criteria(arm: str) -> tuple[str, ...]:
    """All that an arm may be asked to choose by: plain fine-tuning is the other side of every arm."""
    return ("holdout_loss", "kid") if arm == PLAIN else (criterion(arm),)


def judged(arm: str, measure: Measure) -> bool:
    """Whether a measure may speak for or against an arm: not the held-out loss where guidance is on."""
    return not (arm == GUIDED and measure.view == "loss")


def graded_by_psi(arm: str, measure: Measure) -> bool:
    """Whether the arm trains on the very features that the measure is made of."""
    return "sadm" in arm and measure.view == "features"


def trial_spec(benchmark: Benchmark, seed: int, method: Tree, lr: float, *, training_seed: int, sampled: bool) -> TrialSpec:
    """A trial on the seed's split. With `sampled` the file has every measure, without it the loss alone (to train by: sampling costs)."""
    measured = (
        {"metrics": ["holdout_loss", *SAMPLE_METRICS]} if sampled else {"metrics": ["holdout_loss"], "samples": 0, "final_samples": 0}
    )
    tree = {
        "name": benchmark.name,
        "seed": seed,
        "source": benchmark.source,
        "target": {key: place.format(seed=seed) for key, place in benchmark.parts.items()},
        "method": method,
        "train": {**benchmark.train, "lr": lr},
        "evaluate": {**benchmark.evaluate, "grid_images": 0, **measured},
    }
    return compose(Document(tree, f"claims-{benchmark.name}"), seed=training_seed)


def _ant(noise_steps: int, step_size: float, guidance: float, noise_norm: str) -> Tree:
    return {"ant": {"noise_steps": noise_steps, "noise_step_size": step_size, "guidance": guidance, "noise_norm": noise_norm}}


def _sdft(lambda_distill: float, gamma_distill: float, lambda_aux: float) -> Tree:
    return {"sdft": {"lambda_distill": lambda_distill, "gamma_distill": gamma_distill, "lambda_aux": lambda_aux}}


def _sadm(eta: float, warmup_steps: int) -> Tree:
    return {"sadm": {"eta": eta, "warmup_steps": warmup_steps, "timestep": "image"}}


def _ddpm_pa(image: float, high_frequency: float, mse: float) -> Tree:
    return {"ddpm_pa": {"lambda_image": image, "lambda_high_frequency": high_frequency, "lambda_high_frequency_mse": mse}}


PLAIN_TWICE = (Setting("a first training seed", {"finetune": {}}), Setting("a second training seed", {"finetune": {}}))

DIGITS = Benchmark(
    name="digits",
    source={"model": "embedded://digits-ddpm", "images": "embedded://digits/source"},
    parts={
        "images": "embedded://digits/shots?seed={seed}",
        "holdout": "embedded://digits/validation?seed={seed}",
        "test": "embedded://digits/test?seed={seed}",
    },
    train={"steps": 144, "batch_size": 20, "flip": False, "ema": {"decay": 0.98, "warmup": True}},
    evaluate={"every": 36, "samples": 200, "final_samples": 400, "loss_draws": 400, "sampler": "dpm++", "sampler_steps": 12},
    learning_rates=(2e-4, 4e-4, 8e-4),
    arms={
        PLAIN: PLAIN_TWICE,
        "ant_noise": (
            Setting("J = 1, omega 0.02", _ant(1, 0.02, 0, "moments")),
            Setting("J = 3, omega 0.05", _ant(3, 0.05, 0, "moments")),
        ),
        GUIDED: (
            Setting("J = 1, omega 0.02, gamma 0.2", _ant(1, 0.02, 0.2, "moments")),
            Setting("J = 1, omega 0.02, gamma 0.5", _ant(1, 0.02, 0.5, "moments")),
        ),
        "sdft": (
            Setting("the preset: lambdas 0.1 and 0.1, gammas 3 and 50", _sdft(0.1, 3.0, 0.1)),
            Setting("lambda_distill 0.3, gamma_distill 0.5, no aux", _sdft(0.3, 0.5, 0)),
        ),
        "sadm": (
            Setting("eta 1, Psi frozen", _sadm(1.0, 1_000_000)),
            Setting("eta 1, adversarial rounds from the middle on", _sadm(1.0, 72)),
        ),
        "ddpm_pa": (
            Setting("lambdas 0.1, 0.1, 0.01", _ddpm_pa(0.1, 0.1, 0.01)),
            Setting("the preset: lambdas 0.5, 0.5, 0.05", _ddpm_pa(0.5, 0.5, 0.05)),
        ),
        "ant+sdft+sadm": (
            Setting(
                "J = 1, omega 0.02; lambda_distill 0.3, no aux; eta 0.3, Psi frozen",
                {**_ant(1, 0.02, 0, "moments"), **_sdft(0.3, 0.5, 0), **_sadm(0.3, 1_000_000)},
            ),
            Setting(
                "the same with eta 1",
                {**_ant(1, 0.02, 0, "moments"), **_sdft(0.3, 0.5, 0), **_sadm(1.0, 1_000_000)},
            ),
        ),
    },
    device="cpu",
)

EMOJI = Benchmark(
    name="emoji",
    source={"model": "emoji/ddpm", "images": "emoji/source"},
    parts={"images": "emoji/shots-{seed}", "holdout": "emoji/validation-{seed}", "test": "emoji/test-{seed}"},
    train={"steps": 300, "batch_size": 40, "flip": True, "precision": "bf16", "ema": {"decay": 0.99, "warmup": True}},
    evaluate={"every": 50, "samples": 200, "final_samples": 500, "loss_draws": 400, "sampler": "ddim", "sampler_steps": 50},
    learning_rates=(1e-5, 5e-5, 2e-4),
    arms={
        PLAIN: PLAIN_TWICE,
        "ant_noise": (
            Setting("J = 3, omega 0.02", _ant(3, 0.02, 0, "sample")),
            Setting("the preset: J = 10, omega 0.02", _ant(10, 0.02, 0, "sample")),
        ),
        GUIDED: (
            Setting("J = 3, omega 0.02, gamma 1", _ant(3, 0.02, 1.0, "sample")),
            Setting("the preset: J = 10, omega 0.02, gamma 5", _ant(10, 0.02, 5.0, "sample")),
        ),
        "sdft": (
            Setting("the preset: lambdas 0.1 and 0.1, gammas 3 and 50", _sdft(0.1, 3.0, 0.1)),
            Setting("lambda_aux 0.3", _sdft(0.1, 3.0, 0.3)),
        ),
        "sadm": (
            Setting("eta 1, Psi frozen", _sadm(1.0, 1_000_000)),
            Setting("eta 1, adversarial rounds from the middle on", _sadm(1.0, 150)),
        ),
        "ddpm_pa": (
            Setting("lambdas 0.1, 0.1, 0.01", _ddpm_pa(0.1, 0.1, 0.01)),
            Setting("the preset: lambdas 0.5, 0.5, 0.05", _ddpm_pa(0.5, 0.5, 0.05)),
        ),
        "ant+sdft+sadm": (
            Setting(
                "J = 3, omega 0.02; sdft's preset; eta 0.3, Psi frozen",
                {**_ant(3, 0.02, 0, "sample"), **_sdft(0.1, 3.0, 0.1), **_sadm(0.3, 1_000_000)},
            ),
            Setting(
                "the same with eta 1",
                {**_ant(3, 0.02, 0, "sample"), **_sdft(0.1, 3.0, 0.1), **_sadm(1.0, 1_000_000)},
            ),
        ),
    },
    device="cuda",
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in (DIGITS, EMOJI)}
