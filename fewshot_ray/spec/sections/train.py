"""`train`: the optimisation in each trial."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fewshot_ray.spec.sections.section import PositiveInt, Section, Text


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

    gan: dict[str, Any] = Field(default={})
    """Settings of a GAN's training recipe, which depend on its architecture, e.g. {r1: 10, ada: {target: 0.6}}."""

    compile: bool = False
    """Compile the network with torch.compile: the first step takes longer, later ones are faster."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the forward pass; weights and optimiser stay in fp32."""

    ema: EmaSpec = EmaSpec()
    """Moving average of the weights."""

    flip: bool = True
    """Mirror half the training images."""
