"""The sections of a run's file: their fields, defaults and bounds."""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fewshot_ray.spec.wording import show

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})")
_MOST_NAME_BYTES, _MOST_PATH_BYTES = 255, 4_000
"""Limits of file systems; the path's leaves room for names below it."""
_CONSTRAINT = re.compile(r"\s*(<=|>=)\s*([-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?)\s*")


def parse_constraint(text: str) -> tuple[Literal["<=", ">="], float]:
    """`"<= 0.2"` as ("<=", 0.2). Raises ValueError where it isn't a bound."""
    match = _CONSTRAINT.fullmatch(text)
    if match is None or not math.isfinite(float(match[2])):
        raise ValueError(f"{show(text)} is not a bound; '<= 0.2' or '>= 0.1' is right")
    return ("<=" if match[1] == "<=" else ">="), float(match[2])


def _constraint(text: str) -> str:
    parse_constraint(text)
    return text


def _run_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{show(name)} is no name; up to 100 letters, digits, '.', '_' and '-', the first a letter or digit, are right")
    return name


def _distinct(items: list[Any]) -> list[Any]:
    for index, item in enumerate(items):
        if item in items[:index]:
            raise ValueError(f"{show(item)} is given twice; once is right")
    return items


def _method_settings(settings: Any) -> Any:
    if not (settings is None or settings == "search" or isinstance(settings, dict)):
        raise ValueError(f"{show(settings)} is given; a mapping of the method's settings, 'search' or nothing (its defaults) is right")
    return settings


def _place(place: str) -> str:
    if (unset := _VARIABLE.search(place)) and not os.path.exists(place):
        raise ValueError(f"{show(place)} names {unset[0]}, which isn't set; a path or URL is right")
    if "://" in place:
        return place
    path = os.path.expanduser(place)
    if path.startswith("~"):
        raise ValueError(f"{show(place)} begins with a home directory that isn't there; a path or URL is right")
    if any(len(os.fsencode(name)) > _MOST_NAME_BYTES for name in path.split("/")) or len(os.fsencode(path)) > _MOST_PATH_BYTES:
        raise ValueError(f"{show(place)} is too long for a path; a path or URL is right")
    return place


Text = Annotated[str, Field(min_length=1)]
Place = Annotated[str, Field(min_length=1), AfterValidator(_place)]
PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values are never converted, infinities are refused, instances are immutable."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True, serialize_by_alias=True
    )


class SourceSpec(Section):
    """Where training starts: a pre-trained model, or one built from scratch."""

    model: Place | None = None
    """Diffusers pipeline: hub id, folder, s3://... or embedded://digits-ddpm."""

    build: dict[str, Any] | None = None
    """Model built from scratch: UNet2DModel's configuration, with an optional `scheduler`."""

    adm: dict[str, Any] | None = None
    """Original ADM, guided-diffusion or P2 checkpoint: `weights` (a .pt file) and the flags it was trained with."""

    gan: dict[str, Any] | None = None
    """A GAN, from scratch or from its `weights`: {stylegan2: {resolution: 64}} or {fastgan: {resolution: 256}}."""

    images: Place | None = None
    """Images the source model was trained on: a folder, zip, Parquet file or URL, or 'generated'."""

    revision: Text | None = None
    """Branch, tag or commit of the model on its hub."""

    generated_images: PositiveInt = 256
    """Images the source model generates where `images` is 'generated'."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSpec:
        given = [name for name in ("model", "build", "adm", "gan") if getattr(self, name) is not None]
        if len(given) != 1:
            said = f"{' and '.join(given)} are given" if given else "neither model nor build, adm or gan is given"
            right = "model (a pre-trained pipeline), build (one from scratch), adm (an original checkpoint) or gan is right, one of them"
            raise ValueError(f"{said}; {right}")
        return self

    @property
    def pretrained(self) -> bool:
        """Whether training starts from given weights, not from random ones."""
        if self.gan is not None:
            return any(isinstance(settings, dict) and settings.get("weights") is not None for settings in self.gan.values())
        return self.build is None


class CrossFit(Section):
    """Cross-fitting: every shot is held out once; a trial trains `crossfit` folds, and its metrics are their means."""

    crossfit: int = Field(ge=2)
    """Number of folds."""


class TargetSpec(Section):
    """The few images to adapt to, and the images that trials are evaluated on."""

    images: Place
    """Target images: a folder, zip, Parquet file or URL."""

    shots: PositiveInt | None = None
    """Number of images trained on, chosen by `split_seed`; all when not given."""

    split_seed: int = Field(default=0, ge=0)
    """Seed of all splits of the target images."""

    holdout: Place | PositiveInt | CrossFit = CrossFit(crossfit=5)
    """Held-out images: a place, a number of shots to hold out, or {crossfit: folds}."""

    labels: Literal["one", "folders"] | None = None
    """Classes of the images, for a class-conditional model: 'one' new class for all images, or one class per sub-folder."""

    test: Place | None = None
    """Images for `evaluate`; nothing is selected on them."""


class EmaSpec(Section):
    """Exponential moving average of the weights, which is evaluated and exported."""

    decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the average per step."""

    warmup: bool = True
    """Let the decay grow as (1 + n) / (10 + n) up to `decay`, n the step: a short run's average isn't left near the source's weights."""


class TrainSpec(Section):
    """The optimisation in each trial."""

    steps: PositiveInt = 300
    """Optimiser steps; at most, with early_stopping."""

    batch_size: PositiveInt = 40
    """Images per step, over all workers together."""

    micro_batch: Literal["auto"] | PositiveInt = "auto"
    """Images per forward and backward pass of a worker; 'auto' finds what fits into memory."""

    lr: float = Field(default=5e-5, gt=0)
    """Learning rate."""

    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate after its warm-up."""

    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""

    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    """Adam's decay rates of the first and the second moment."""

    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient, which is scaled down to it; null for no clipping."""

    early_stopping: bool = True
    """End a trial once its objectives have turned: two evaluations in a row are worse than the best, by a test on the held-out images."""

    params: Text | dict[str, dict[str, Any]] = "full"
    """Which parameters are trained: full, bitfit, difffit, adaptor, lora, oft or boft, or with settings: {lora: {rank: 8}}."""

    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the labels replaced by the null class, for classifier-free guidance; class-conditional models only."""

    checkpoint_sec: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints; every evaluation writes one too."""

    gan: dict[str, Any] = {}
    """Settings of a GAN's training recipe, which depend on its architecture, e.g. {r1: 10, ada: {target: 0.6}}."""

    compile: bool = False
    """Compile the network with torch.compile: the first step takes longer, later ones are faster."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; weights and optimiser stay in fp32."""

    ema: EmaSpec = EmaSpec()
    """Moving average of the weights."""

    flip: bool = True
    """Mirror half the training images."""


class EvaluateSpec(Section):
    """How trials are evaluated, and how often."""

    every: PositiveInt = 50
    """Training steps between evaluations."""

    samples: int = Field(default=256, ge=0)
    """Images generated per evaluation."""

    final_samples: int = Field(default=1000, ge=0)
    """Images generated in the evaluation of the winners."""

    metrics: Annotated[list[Text], AfterValidator(_distinct)] = Field(default=["holdout_loss"], min_length=1)
    """Metrics computed in every evaluation."""

    extractor: Text = "auto"
    """Network whose features the metrics use: auto, digits or inception."""

    extractor_weights: Place | None = None
    """Local file with the extractor's weights; fetched when not given."""

    lpips_weights: Place | None = None
    """Local file with the weights of LPIPS's VGG network; fetched when not given."""

    sampler: Literal["ddim", "dpm++"] = "ddim"
    """Sampler of the generated images."""

    sampler_steps: PositiveInt = 50
    """Network evaluations per generated image."""

    guidance_scale: float = Field(default=1.0, ge=1)
    """Scale of classifier-free guidance for generated images, 1 for none; class-conditional models only."""

    paths: PositiveInt = 64
    """Straight lines through a GAN's latent space per evaluation, for path_uniformity and ppl_uniformity."""

    final_paths: PositiveInt = 1000
    """Straight lines through the latent space in the evaluation of the winners."""

    loss_draws: PositiveInt = 256
    """Minimum number of fixed (t, eps) pairs that holdout_loss averages over; every held-out image has at least one."""

    grid_images: int = Field(default=16, ge=0)
    """Images in the sample grid of an evaluation."""

    keep_samples: bool = False
    """Keep all generated images of every evaluation, not only the grid."""


class AshaSpec(Section):
    """Asynchronous successive halving (Li et al. 2020) of the sampler's trials; preset and plain fine-tuning are never stopped."""

    metric: Text | None = None
    """Metric that trials are compared by, those that keep search.constraints first; the objectives, by fronts, when not given."""

    grace_steps: PositiveInt
    """Steps before the first decision to stop a trial; a multiple of evaluate.every."""

    reduction_factor: int = Field(default=3, ge=2)
    """At each rung the best 1 / reduction_factor of the trials continue."""


class RaceSpec(Section):
    """Ends the sampler's trials that are behind the best one and wouldn't catch up; preset and plain fine-tuning are never stopped."""

    level: float = Field(default=0.05, gt=0, lt=1)
    """Level of the test by held-out image, shared among a trial's evaluations; a larger one stops more, and more often wrongly."""


class SchedulerSpec(Section):
    """Stops trials that won't become the best."""

    race: RaceSpec | None = None
    """Comparison with the best trial; none when not given."""

    asha: AshaSpec | None = None
    """Successive halving; none when not given."""


class ConfirmSpec(Section):
    """Reruns of the winners, and of plain fine-tuning at their learning rate, with new seeds."""

    top: PositiveInt = 1
    """Number of winners that are rerun; with several, half of the seeds choose the best of them, and the others report it."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_distinct)] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    """Seeds of the reruns; from fewer than three that report no conclusion is drawn."""

    plain: Literal["same_lr", "tuned"] = "same_lr"
    """Plain fine-tuning to compare with: at the winner's `train` values, or the best of its own search with as many trials."""

    @property
    def choosing(self) -> list[int]:
        """The seeds that choose among several winners: the first half, rounded down; of a single seed, that one."""
        return self.seeds[: max(1, len(self.seeds) // 2)] if self.top > 1 else []

    @property
    def reporting(self) -> list[int]:
        """The seeds that the chosen trial is reported on: the others, on which nothing was chosen."""
        return self.seeds[len(self.choosing) :]


class CostSpec(Section):
    """A limit of money, in any currency."""

    at_most: float = Field(gt=0)
    """What the search may cost."""

    per_node_hour: float = Field(gt=0)
    """Price of an hour of one machine."""


class BudgetSpec(Section):
    """Limits of the search in addition to `trials`: where the first is reached, no further trial of the search begins."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """Hours during which trials of the search run, over all resumes; pauses aren't counted."""

    gpu_hours: Annotated[float, Field(gt=0)] | None = None
    """Hours of GPUs held by trials of the search; with `gpus_per_worker: 0.5` half of a GPU is held."""

    cost: CostSpec | None = None
    """Money for the machines while trials of the search run."""

    patience: PositiveInt | None = None
    """Number of trials that end one after the other without a better one among them."""

    @model_validator(mode="after")
    def _any(self) -> BudgetSpec:
        if all(limit is None for limit in (self.hours, self.gpu_hours, self.cost, self.patience)):
            raise ValueError("no limit is given; one or several of hours, gpu_hours, cost and patience are right")
        return self


class SearchSpec(Section):
    """How the ranges are searched."""

    trials: PositiveInt = 1
    """Number of trials, including preset and plain fine-tuning; at most the number of configurations, since none is trained twice."""

    budget: BudgetSpec | None = None
    """Further limits, of time, money or patience; none when not given."""

    earlier: Annotated[list[Place], AfterValidator(_distinct)] = Field(default=[], alias="from")
    """Folders or URLs of earlier sweeps whose trials this one begins with."""

    objectives: dict[str, Literal["min", "max"]] = Field(default={"holdout_loss": "min"}, min_length=1)
    """Metrics, of evaluate.metrics, to minimise or maximise."""

    constraints: dict[str, Annotated[str, AfterValidator(_constraint)]] = {}
    """Bounds on metrics that a winner must keep, e.g. {memorisation: '<= 0.2'}."""

    sampler: Literal["tpe", "gp", "nsga2", "qmc", "random"] = "tpe"
    """How values are proposed: TPE, a Gaussian process, NSGA-II, quasi-random (scrambled Sobol) or random."""

    scheduler: SchedulerSpec | None = None
    """Stops trials that won't become the best; none when not given."""

    confirm: ConfirmSpec | None = None
    """Rerun of the winners; none when not given."""

    concurrent: PositiveInt | None = None
    """Number of trials that run at the same time; as many as fit when not given."""

    keep_checkpoints: PositiveInt = 10
    """Number of best finished trials that keep a checkpoint, in addition to preset, plain fine-tuning, reruns, refit and Pareto front."""

    retries: int = Field(default=2, ge=0)
    """Times a trial is restarted after its worker crashed; the loss of a machine isn't counted."""

    include_preset: bool = True
    """Start with a trial at the methods' presets."""

    include_plain: bool = True
    """Start with a trial of plain fine-tuning, at the preset's values below `train`."""


class ResourcesSpec(Section):
    """The hardware of one trial."""

    workers: PositiveInt = 1
    """Processes (ranks) that share a trial's batches."""

    min_workers: PositiveInt = 1
    """Minimum number of workers that a trial continues with after the loss of a node."""

    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = 0.0
    """GPUs per worker; with a fraction, workers share a GPU. 'auto': one, then the fraction that trials were measured to need."""

    cpus_per_worker: Literal["auto"] | Annotated[float, Field(gt=0)] = 1.0
    """CPU cores per worker. 'auto': one, and without GPUs no more trials at the same time than the measured memory of the first allows."""

    @property
    def gpus(self) -> float:
        """GPUs per worker of the first trials."""
        return 1.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def cpus(self) -> float:
        """CPU cores per worker."""
        return 1.0 if self.cpus_per_worker == "auto" else self.cpus_per_worker


class FileSpec(Section):
    """A run's whole file."""

    name: Annotated[str, AfterValidator(_run_name)]
    """Name of the run and of its folder in `storage`."""

    seed: int = Field(default=0, ge=0)
    """Seed of training and of the search."""

    source: SourceSpec
    """Where training starts."""

    target: TargetSpec
    """What to adapt to."""

    method: dict[str, Annotated[Any, AfterValidator(_method_settings)]]
    """Methods to combine, each with its settings, 'search' (the method's declared ranges) or nothing (its defaults)."""

    train: TrainSpec = TrainSpec()
    """Optimisation in each trial."""

    evaluate: EvaluateSpec = EvaluateSpec()
    """Evaluation of trials."""

    search: SearchSpec = SearchSpec()
    """Search over the ranges."""

    resources: ResourcesSpec = ResourcesSpec()
    """Hardware of a trial."""

    storage: Place = "runs"
    """Folder or URL in which each run gets a folder."""
