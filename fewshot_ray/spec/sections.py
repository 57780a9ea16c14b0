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
"""What disks take; the path leaves room for the names below it."""
_CONSTRAINT = re.compile(r"\s*(<=|>=)\s*([-+]?(?:\.[0-9]+|[0-9]+\.?[0-9]*)(?:[eE][-+]?[0-9]+)?)\s*")


def parse_constraint(text: str) -> tuple[Literal["<=", ">="], float]:
    """`"<= 0.2"` as ("<=", 0.2). Raises ValueError for what is no bound."""
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
            raise ValueError(f"{show(item)} stands twice; once is right")
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
    """What all sections share: unknown keys refused, no silent conversion, no infinities, and no change afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class SourceSpec(Section):
    """Where training starts: a pre-trained model, or one built from scratch."""

    model: Place | None = None
    """Diffusers pipeline: hub id, folder, s3://... or embedded://digits-ddpm."""

    build: dict[str, Any] | None = None
    """Model built from scratch: UNet2DModel's configuration, with an optional `scheduler`."""

    adm: dict[str, Any] | None = None
    """Original ADM, guided-diffusion or P2 checkpoint: `weights` (a .pt file) and the flags it was trained with, by their names."""

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
        """Whether training starts from somebody's weights."""
        if self.gan is not None:
            return any(isinstance(settings, dict) and settings.get("weights") is not None for settings in self.gan.values())
        return self.build is None


class CrossFit(Section):
    """Every shot held out once: a trial is `crossfit` folds trained side by side."""

    crossfit: int = Field(ge=2)
    """Folds."""


class TargetSpec(Section):
    """The few images to adapt to, and what candidates are judged on."""

    images: Place
    """Target images: a folder, zip, Parquet file or URL."""

    shots: PositiveInt | None = None
    """Images trained on, chosen by `split_seed`; all when not given."""

    split_seed: int = Field(default=0, ge=0)
    """Seed of every split of the target images."""

    holdout: Place | PositiveInt | CrossFit = CrossFit(crossfit=5)
    """Images candidates are judged on: a place, a number of shots kept back, or {crossfit: folds}."""

    labels: Literal["one", "folders"] | None = None
    """Classes of the images, for a class-conditional model: 'one' new class for all, or a class for each sub-folder."""

    test: Place | None = None
    """Images that `evaluate` reports on; nothing is ever selected on them."""


class EmaSpec(Section):
    """Exponential moving average of the weights; it is what is evaluated and exported."""

    decay: float = Field(default=0.999, ge=0, lt=1)
    """Share of the average kept in a step."""

    warmup: bool = True
    """Begin with a small decay that grows, so that a short run is not left with the source's weights."""


class TrainSpec(Section):
    """One trial's optimisation."""

    steps: PositiveInt = 300
    """Optimiser steps."""

    batch_size: PositiveInt = 40
    """Images a step, over all workers together."""

    micro_batch: Literal["auto"] | PositiveInt = "auto"
    """Images that pass through the network at a time; 'auto' finds what fits."""

    lr: float = Field(default=5e-5, gt=0)
    """Learning rate."""

    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Course of the learning rate after its warm-up."""

    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from 0."""

    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""

    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(default=[0.9, 0.999], min_length=2, max_length=2)
    """Adam's decay rates of the first and second moment."""

    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; null leaves it as it is."""

    params: Text | dict[str, dict[str, Any]] = "full"
    """What is trained: full, bitfit, difffit, adaptor, lora, oft or boft, or with settings: {lora: {rank: 8}}."""

    label_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the labels replaced by the null class, for classifier-free guidance; class-conditional models only."""

    checkpoint_sec: float = Field(default=60.0, ge=0)
    """Seconds after which a checkpoint is due between evaluations."""

    gan: dict[str, Any] = {}
    """What the training of a GAN has besides: the settings of its architecture's recipe, e.g. {r1: 10, ada: {target: 0.6}}."""

    compile: bool = False
    """Compile the network with torch.compile: a slow first step, faster ones after it."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; weights and optimiser stay in fp32."""

    ema: EmaSpec = EmaSpec()
    """Moving average of the weights."""

    flip: bool = True
    """Mirror half the training images."""


class EvaluateSpec(Section):
    """What a trial is measured by, and how often."""

    every: PositiveInt = 50
    """Training steps between evaluations."""

    samples: int = Field(default=256, ge=0)
    """Images generated in an evaluation."""

    final_samples: int = Field(default=1000, ge=0)
    """Images generated in the evaluation of the winners."""

    metrics: Annotated[list[Text], AfterValidator(_distinct)] = Field(default=["holdout_loss"], min_length=1)
    """Metrics computed in every evaluation."""

    extractor: Text = "auto"
    """Network whose features the metrics compare: auto, digits or inception."""

    extractor_weights: Place | None = None
    """Local file with the extractor's weights; fetched when not given."""

    lpips_weights: Place | None = None
    """Local file with the weights of LPIPS's VGG network; fetched when not given."""

    sampler: Literal["ddim", "dpm++"] = "ddim"
    """Sampler of the generated images."""

    sampler_steps: PositiveInt = 50
    """Network evaluations a generated image takes."""

    guidance_scale: float = Field(default=1.0, ge=1)
    """Classifier-free guidance of the generated images, 1 for none; class-conditional models only."""

    paths: PositiveInt = 64
    """Straight lines through a GAN's latent space that path_uniformity and ppl_uniformity are measured on in an evaluation."""

    final_paths: PositiveInt = 1000
    """As many in the evaluation of the winners."""

    loss_draws: PositiveInt = 256
    """Least number of fixed (t, eps) pairs that holdout_loss averages over; every held-out image has at least one."""

    grid_images: int = Field(default=16, ge=0)
    """Images in an evaluation's sample grid."""

    keep_samples: bool = False
    """Keep the generated images of every evaluation, not the grid alone."""


class AshaSpec(Section):
    """Asynchronous successive halving (Li et al. 2020) of the sampler's trials; preset and plain fine-tuning run to their end."""

    metric: Text
    """Metric, one of evaluate.metrics, that trials are stopped by; one that keeps search.constraints is before any that doesn't."""

    grace_steps: PositiveInt
    """Steps every trial may take; a multiple of evaluate.every."""

    reduction_factor: int = Field(default=3, ge=2)
    """One in so many trials goes on from a rung to the next."""


class SchedulerSpec(Section):
    """What stops trials early."""

    asha: AshaSpec | None = None
    """Successive halving; nothing is stopped when not given."""


class ConfirmSpec(Section):
    """The rerun of the winners, and of plain fine-tuning at their learning rate, on fresh seeds."""

    top: PositiveInt = 1
    """Winners that are rerun."""

    seeds: Annotated[list[Annotated[int, Field(ge=0)]], AfterValidator(_distinct)] = Field(default=[1, 2, 3], min_length=1)
    """Seeds of the reruns."""


class SearchSpec(Section):
    """How the ranges are searched."""

    trials: PositiveInt = 1
    """Trials, presets and plain fine-tuning among them; no more than there are configurations, since none is trained twice."""

    objectives: dict[str, Literal["min", "max"]] = Field(default={"holdout_loss": "min"}, min_length=1)
    """Metrics, of evaluate.metrics, to make smallest or largest."""

    constraints: dict[str, Annotated[str, AfterValidator(_constraint)]] = {}
    """Bounds that a winner must keep, e.g. {memorisation: '<= 0.2'}."""

    sampler: Literal["tpe", "random", "gp"] = "tpe"
    """Optuna's sampler."""

    scheduler: SchedulerSpec | None = None
    """Early stopping; every trial runs to its end when not given."""

    confirm: ConfirmSpec | None = None
    """Rerun of the winners; none when not given."""

    concurrent: PositiveInt | None = None
    """Trials that run at a time; as many as fit when not given."""

    keep_checkpoints: PositiveInt = 10
    """Finished trials, the best, that keep a checkpoint; preset, plain fine-tuning, reruns, refit and Pareto front keep theirs besides."""

    retries: int = Field(default=2, ge=0)
    """Times a trial is started again after its worker crashed; a machine that went away is not counted."""

    include_preset: bool = True
    """Begin with the preset of the methods, together as they are in the file."""

    include_plain: bool = True
    """Begin with plain fine-tuning at the file's values."""


class ResourcesSpec(Section):
    """What one trial runs on."""

    workers: PositiveInt = 1
    """Processes that share a trial's batches."""

    min_workers: PositiveInt = 1
    """A trial whose node is lost goes on with as many workers as the others hold, this many at least."""

    gpus_per_worker: float = Field(default=0.0, ge=0)
    """GPUs of a worker; a fraction shares one."""

    cpus_per_worker: float = Field(default=1.0, gt=0)
    """CPU cores of a worker."""


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
    """Methods to combine, each with its settings, 'search' (its own ranges) or nothing (its defaults)."""

    train: TrainSpec = TrainSpec()
    """Optimisation."""

    evaluate: EvaluateSpec = EvaluateSpec()
    """Measurement."""

    search: SearchSpec = SearchSpec()
    """Search."""

    resources: ResourcesSpec = ResourcesSpec()
    """Hardware of a trial."""

    storage: Place = "runs"
    """Folder or URL that holds the runs' folders."""
