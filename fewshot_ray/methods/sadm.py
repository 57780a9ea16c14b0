"""SADM: structure-guided adversarial training (Yang et al., CVPR 2024), equation numbers of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fewshot_ray.methods.draw import Draw
from fewshot_ray.methods.phase import LR_FACTOR, Objective, Phase
from fewshot_ray.methods.registry import Adversary, Ingredients, MethodConfig, Part, register
from fewshot_ray.metrics.encoders import load_encoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.spec.ranges import FloatRange

PSI = "psi"


class SadmConfig(MethodConfig):
    """Keeps the structure of a batch: the affinities of its images in the features of an encoder Psi, which is trained adversarially."""

    least_batch = 2

    eta: Annotated[float, Field(ge=0), FloatRange(0.1, 100.0, log=True)] = 1.0
    """Weight of the structural distance, times 1/t with t in (0, 1]; 0 leaves Psi out."""
    norm: Literal["mean", "sum"] = "mean"
    """The norm of the denoising loss that eta is stated for: the mean over C, H, W, as for all weights here, or the sum of the paper's
    Eq. 8, which divides eta by C H W: eta 1 beside the mean is 4,096 times the paper's ratio for 4x32x32 latents."""
    time_weight_max: float = Field(default=10.0, ge=1)
    """Upper bound of the time weight 1/t."""
    timestep: Literal["batch", "image"] = "batch"
    """One t for all images of a batch (the paper's), or one per image, a pair weighted by the geometric mean of its two weights."""
    encoder: Literal["auto", "inception", "dinov2", "digits"] = "auto"
    """Network that Psi starts from: Inception-V3's pool features (the paper's), DINOv2, or the bundled digit network; 'auto' is 'digits'
    for 1x8x8 images and 'inception' for all others."""
    encoder_weights: str | None = None
    """Local file with Inception's weights, or folder or hub id of a DINOv2; fetched when not given."""
    decoded_images: int = Field(default=8, ge=2)
    """Images per batch that are decoded and compared for a latent model; for a pixel model all are compared."""
    warmup_steps: int = Field(default=24_000, ge=0)
    """Steps with Psi frozen (structure guidance) before the adversarial rounds."""
    round_steps: int = Field(default=1, ge=1)
    """Steps of an adversarial round; the denoiser trains in all of them."""
    psi_steps: int = Field(default=1, ge=0)
    """Steps at a round's beginning in which Psi trains as well, before the denoiser; 0 keeps it frozen."""
    psi_lr_factor: float = Field(default=0.1, gt=0, le=0.1)
    """Psi's learning rate divided by `train.lr`; above a tenth training is unstable."""
    psi_clip: float = Field(default=1.0, gt=0)
    """Largest norm of Psi's gradient."""

    def check(self, backbone: Backbone) -> None:
        """Raise UserError where Psi can't be loaded or doesn't take the model's images."""
        if self.eta > 0:
            psi = load_encoder(encoder_name(self, backbone), device="cpu", weights=self.encoder_weights)
            with torch.no_grad():
                psi(torch.zeros((1, backbone.channels, *backbone.size)))

    def adversarial(self, step: int) -> bool:
        """Whether Psi trains in a step, counted from 0."""
        return step >= self.warmup_steps and (step - self.warmup_steps) % self.round_steps < self.psi_steps


class Sadm:
    """`(1 / B^2) sum_ij eta_t (R(Psi x_0^i, Psi x_0^j) - R(Psi x_0_hat^i, Psi x_0_hat^j))^2` (Eq. 7 to 9), R the cosine similarity.

    Features are L2-normalised: with inner products Psi could raise the term by scaling its features.
    """

    def __init__(self, config: SadmConfig, psi: nn.Module, backbone: Backbone) -> None:
        self.config = config
        self.psi = psi
        self.backbone = backbone
        channels, height, width = backbone.shape
        self.eta = config.eta / (channels * height * width if config.norm == "sum" else 1)

    def compared(self, images: int) -> int:
        """All images; for a latent model the first `decoded_images`."""
        return images if self.backbone.autoencoder is None else min(images, self.config.decoded_images)

    def rows(self, context: Draw) -> Mapping[str, Tensor]:
        """Features of real and generated images; no gradient reaches the real ones."""
        count = self.own_compared(context)
        with torch.no_grad():
            real = self.features(context, context.training_images(count))
        return {
            "real": real,
            "generated": self.generated(context, context.x_0_hat, count),
            "time_weight": self.time_weight(context)[:count],
        }

    def terms(self, rows: Mapping[str, Tensor]) -> Objective:
        """The weighted squared differences of the affinities, `[M]`: for each image the mean over its pairs."""
        difference = affinity(rows["real"]) - affinity(rows["generated"])
        root = rows["time_weight"].sqrt()
        return Objective({"structure": (torch.outer(root, root) * difference.square()).mean(dim=1)}, {"structure": self.eta})

    def own_compared(self, draw: Draw) -> int:
        """How many images of a micro-batch are compared."""
        return draw.batch.among_first(self.compared(draw.batch.global_size))

    def features(self, draw: Draw, images: Tensor) -> Tensor:
        """`Psi x` `[m, D]`, from images in [-1, 1]."""
        if len(images) == 0:  # networks refuse empty input
            return self.features(draw, draw.training_images(1))[:0]
        features: Tensor = self.psi(images)
        return features

    def generated(self, draw: Draw, x_0_hat: Tensor, count: int) -> Tensor:
        """`Psi x_0_hat`, `[count, D]`, of the decoded images clamped to [-1, 1]."""
        return self.features(draw, self.backbone.decode(x_0_hat[:count]) if count > 0 else x_0_hat[:0])

    def time_weight(self, draw: Draw) -> Tensor:
        """`1 / t` with t = (t + 1) / T, bounded, `[b]`."""
        t = (draw.t + 1) / self.backbone.schedule.timesteps
        return (1 / t).clamp(max=self.config.time_weight_max)


class Challenge:
    """The same term in Psi's phase, by gradient ascent (Eq. 10): the denoiser's images are fixed, and all features have a graph."""

    def __init__(self, sadm: Sadm) -> None:
        self.sadm = sadm

    def compared(self, images: int) -> int:
        """The same images as in the denoiser's phase."""
        return self.sadm.compared(images)

    def rows(self, context: Draw) -> Mapping[str, Tensor]:
        """Features of real and generated images, both with gradients to Psi and none to the denoiser."""
        sadm = self.sadm
        count = sadm.own_compared(context)
        real = sadm.features(context, context.training_images(count))
        generated = sadm.generated(context, context.x_0_hat.detach(), count)
        return {"real": real, "generated": generated, "time_weight": sadm.time_weight(context)[:count]}

    def terms(self, rows: Mapping[str, Tensor]) -> Objective:
        """The same terms as in the denoiser's phase."""
        return self.sadm.terms(rows)


def affinity(features: Tensor) -> Tensor:
    """`R(i, j)` of all pairs, `[M, M]` in [-1, 1], from features `[M, D]`."""
    unit = F.normalize(features, dim=1)
    return unit @ unit.T


def encoder_name(config: SadmConfig, backbone: Backbone) -> str:
    """The encoder's name; for `auto`, 'digits' for 1x8x8 images and 'inception' for all others."""
    if config.encoder != "auto":
        return config.encoder
    return "digits" if (backbone.channels, backbone.size) == (1, (8, 8)) else "inception"


@register("sadm", SadmConfig)
def make_sadm(config: SadmConfig, ingredients: Ingredients) -> Part:
    """The structure term and Psi's phase, which runs before the denoiser's; neither where eta is 0."""
    if config.eta == 0:
        return Part()
    backbone = ingredients.backbone
    psi = load_encoder(encoder_name(config, backbone), device=backbone.device, weights=config.encoder_weights)
    sadm = Sadm(config, psi, backbone)
    parameters = [parameter for parameter in psi.parameters() if parameter.requires_grad]
    phase = Phase(
        PSI,
        parameters,
        PSI,
        lambda draw: Objective({}, {}),
        relations=[Challenge(sadm)],
        active=config.adversarial,
        gradient_scale=-1.0,
        gradient_clip=config.psi_clip,
    )
    optimizer = torch.optim.Adam([{"params": parameters, LR_FACTOR: config.psi_lr_factor}], lr=0.0, fused=True)
    return Part(relation=sadm, adversaries=[Adversary(PSI, psi, optimizer, phase)], one_timestep=config.timestep == "batch")
