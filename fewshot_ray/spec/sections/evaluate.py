"""`evaluate`: how trials are measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fewshot_ray.spec.sections.section import Place, PositiveInt, Section, Text, distinct

HOLDOUT_LOSS = "holdout_loss"
BANDS = ("coarse", "content", "cleanup")
"""Bands of noise in ascending order of the signal-to-noise ratio."""
LOSS_OF = {f"loss_{band}": band for band in BANDS}
"""Metrics of the held-out losses in a band (`metrics.noise_levels`)."""
RELATIVE_LOSS = "relative_loss"
RELATIVE_METRICS = (*(f"relative_{band}" for band in BANDS), RELATIVE_LOSS)
"""Metrics of the held-out losses relative to the source model's, in a band and where the signal-to-noise ratio is .01 to 10."""
BAND_METRICS = (*LOSS_OF, *RELATIVE_METRICS)


class EvaluateSpec(Section):
    """How trials are evaluated, and how often."""

    every: PositiveInt = 50
    """Training steps between evaluations."""

    samples: int = Field(default=256, ge=0)
    """Images generated per evaluation."""

    final_samples: int = Field(default=1000, ge=0)
    """Images generated in the evaluation of the winners."""

    metrics: Annotated[list[Text], AfterValidator(distinct)] = Field(
        default=["holdout_loss"], min_length=1, json_schema_extra={"by_case": True}
    )
    """Metrics computed in every evaluation."""

    protocol: Literal["clean", "fsig", "fsig-100", "adm"] = "clean"
    """Conventions of measurement: this package's own, few-shot image generation's (clusters of at most 50, or 100), guided-diffusion's."""

    extractor: Text = "auto"
    """Network whose features the metrics use: auto, digits, inception, dinov2, clip, efficientnet, or one's own package.module:callable."""

    extractor_weights: Place | None = None
    """Local file or folder with the extractor's weights; the network's own when not given."""

    inception_weights: Place | None = None
    """Local file with the weights of Inception-V3; fetched when not given."""

    dinov2_weights: Place | None = None
    """Folder or hub id of DINOv2; facebook/dinov2-large when not given."""

    clip_weights: Place | None = None
    """Folder or hub id of CLIP; openai/clip-vit-large-patch14-336 when not given."""

    lpips_network: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network of LPIPS."""

    lpips_weights: Place | None = None
    """Local file with the weights of LPIPS's network, torchvision's; fetched when not given."""

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
