"""ANT: adversarial noise-based transfer (Wang et al., ICML 2024), equation numbers of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fewshot_ray.data.images import to_model_range
from fewshot_ray.methods.draw import SelectedNoise, frozen
from fewshot_ray.methods.randomness import Randomness, derived_seed
from fewshot_ray.methods.registry import Ingredients, MethodConfig, Part, register
from fewshot_ray.methods.stage import Stage
from fewshot_ray.models.autoencoder import encode_all
from fewshot_ray.models.classifier import NoiseAwareClassifier
from fewshot_ray.models.schedule import NoiseSchedule
from fewshot_ray.spec.ranges import FloatRange, IntRange

NoiseNorm = Literal["sample", "moments", "batch"]
GuidanceWeight = Literal["paper", "derived", "code"]
InnerNetwork = Literal["student", "source"]


PredictEps = Callable[[Tensor, Tensor], Tensor]
"""A network's noise estimate `[b, C, H, W]` at (x_t, t)."""


class AntConfig(MethodConfig):
    """Adversarial noise selection and similarity guidance; the defaults are the paper's."""

    cheap_stages = {"classifier_steps": 1, "classifier_batch": 2}  # noqa: RUF012 (a ClassVar where it is declared)

    noise_steps: Annotated[int, Field(ge=0, le=1000), IntRange(1, 20)] = 10
    """J, the ascent steps on the noise; 0 keeps the drawn noise."""
    noise_step_size: Annotated[float, Field(gt=0), FloatRange(0.005, 0.1, log=True)] = 0.02
    """omega: the step size on the gradient of the loss *summed* over pixels."""
    noise_norm: NoiseNorm = "sample"
    """How noise is normalised after an ascent step: each image's to mean 0 and std 1 (the paper's; destructive below 32x32 pixels),
    to the moments it was drawn with, or a micro-batch's as a whole to mean 0 and std 1 (so the result depends on `micro_batch`)."""
    inner_network: InnerNetwork = "student"
    """The network whose error the noise is to raise: the current student (the paper's), or the frozen source model."""
    guidance: Annotated[float, Field(ge=0), FloatRange(0.0, 10.0)] = 5.0
    """gamma, the similarity guidance's weight; 0 leaves the classifier out."""
    guidance_weight: GuidanceWeight = "paper"
    """What gamma multiplies: sigma_hat_t^2 (the paper's), sigma_hat_t (as derived from the guided mean),
    or 1 - alpha_bar_t (the authors' code)."""
    classifier_steps: int = Field(default=300, ge=1)
    """Training steps of the noise-aware classifier."""
    classifier_batch: int = Field(default=64, ge=2)
    """Batch size of the classifier's training, half of it from each domain."""
    classifier_lr: float = Field(default=1e-4, gt=0)
    """Learning rate of the classifier's training (Adam)."""

    @property
    def prepares(self) -> bool:
        """Whether the noise-aware classifier is trained before trials start: guidance needs it."""
        return self.guidance > 0

    @classmethod
    def misfit(cls, given: Mapping[str, Any]) -> tuple[str, str] | None:
        """`noise_step_size` given where `noise_steps` is 0. (A range of steps may begin at 0: other trials use the step size.)"""
        if given.get("noise_steps") == 0 and "noise_step_size" in given:
            return "noise_step_size", "is given, but noise_steps is 0, so nothing uses it; leave it out, or 1 or more noise_steps is right"
        return None


class Ant:
    """Chooses the noise with the largest denoising error for the student, and shifts its target towards the classifier's target domain."""

    def __init__(
        self, config: AntConfig, schedule: NoiseSchedule, classifier: nn.Module | None, source_eps: PredictEps | None = None
    ) -> None:
        self.config = config
        self.schedule = schedule
        self.classifier = classifier
        self.source_eps = source_eps
        """The source model's noise estimate, where `inner_network` is "source"."""

    def __call__(self, x_0: Tensor, t: Tensor, eps: Tensor, predict_eps: PredictEps) -> SelectedNoise:
        """eps* of Eq. 7 and the target shift of Eq. 8."""
        eps_star = self.adversarial_noise(x_0, t, eps, self.source_eps or predict_eps)
        if self.classifier is None or self.config.guidance == 0:
            return SelectedNoise(eps_star, None)
        return SelectedNoise(eps_star, self.target_shift(self.schedule.add_noise(x_0, eps_star, t), t))

    def adversarial_noise(self, x_0: Tensor, t: Tensor, eps: Tensor, predict_eps: PredictEps) -> Tensor:
        """`eps <- Norm(eps + omega grad_eps ||eps - eps_theta(x_t(eps), t)||^2)`, J times (Eq. 7), `[b, C, H, W]`.

        The gradient runs through the network; its parameters receive none, and each ascent step's graph is freed.
        """
        drawn = eps
        for _ in range(self.config.noise_steps):
            with torch.enable_grad():
                eps = eps.detach().requires_grad_()
                x_t = self.schedule.add_noise(x_0, eps, t)
                loss = (eps - predict_eps(x_t, t)).square().sum()
                (gradient,) = torch.autograd.grad(loss, eps)
            eps = normalize(eps.detach() + self.config.noise_step_size * gradient, drawn, self.config.noise_norm)
        return eps

    def target_shift(self, x_t: Tensor, t: Tensor) -> Tensor:
        """`-gamma w_t grad_{x_t} log p_phi(y = target | x_t)` (Eq. 5 and 8; there the term is on the prediction's side), `[b, C, H, W]`."""
        assert self.classifier is not None
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            log_p = F.logsigmoid(self.classifier(x_t, t))
            (gradient,) = torch.autograd.grad(log_p.sum(), x_t)
        w_t = guidance_weight(self.schedule, t, self.config.guidance_weight)
        return -self.config.guidance * w_t.view(-1, 1, 1, 1) * gradient


def normalize(eps: Tensor, drawn: Tensor, norm: NoiseNorm) -> Tensor:
    """The Norm of Eq. 7: mean 0 and std 1 over C, H, W of each sample ("sample"), the drawn moments, or over the whole batch."""
    dims = (0, 1, 2, 3) if norm == "batch" else (1, 2, 3)
    std, mean = torch.std_mean(eps, dim=dims, keepdim=True, correction=0)
    standard = (eps - mean) / std
    if norm != "moments":
        return standard
    drawn_std, drawn_mean = torch.std_mean(drawn, dim=dims, keepdim=True, correction=0)
    return standard * drawn_std + drawn_mean


def guidance_weight(schedule: NoiseSchedule, t: Tensor, weight: GuidanceWeight) -> Tensor:
    """w_t, the factor beside gamma, `[b]`."""
    if weight == "code":
        return schedule.noise_variance(t)
    sigma_hat = schedule.sigma_hat(t)
    return sigma_hat**2 if weight == "paper" else sigma_hat


def train_classifier(source: Tensor, target: Tensor, schedule: NoiseSchedule, config: AntConfig, *, seed: int) -> NoiseAwareClassifier:
    """p_phi(y = target | x_t), from noised images (or latents) of both domains; `source` and `target` are x_0 `[N, C, H, W]`."""
    device = source.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, "ant-classifier"))
        classifier = NoiseAwareClassifier(source.shape[1], (source.shape[2], source.shape[3])).to(device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=config.classifier_lr)
    randomness = Randomness(derived_seed(seed, "ant-classifier-data"), device)
    half = config.classifier_batch // 2
    y = torch.cat([torch.zeros(half, device=device), torch.ones(half, device=device)])
    for step in range(config.classifier_steps):
        rows = [images[randomness.integers(step, domain, len(images), half)] for domain, images in (("source", source), ("target", target))]
        x_0 = torch.cat(rows)
        t = randomness.integers(step, "t", schedule.timesteps, 2 * half)
        eps = randomness.normal(step, "eps", tuple(x_0.shape))
        loss = F.binary_cross_entropy_with_logits(classifier(schedule.add_noise(x_0, eps, t), t), y)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return classifier


def classifier_stage(config: AntConfig, ingredients: Ingredients) -> Stage:
    """The classifier depends on both domains' images and its own settings, not on ANT's other settings: a sweep trains it once per fold."""
    source, source_hash = ingredients.source_images()
    target, target_hash = ingredients.training_images()
    schedule = ingredients.backbone.schedule
    settings = config.model_dump(include={"classifier_steps", "classifier_batch", "classifier_lr"})

    def compute() -> dict[str, Tensor]:
        device = ingredients.backbone.device
        autoencoder = ingredients.backbone.autoencoder
        x_0 = [encode_all(autoencoder, to_model_range(part).to(device)).mean for part in (source, target)]
        return train_classifier(x_0[0], x_0[1], schedule, config, seed=ingredients.seed).state_dict()

    schedule_hash = float(schedule.alphas_cumprod.sum())
    depends_on = {
        "source": source_hash,
        "target": target_hash,
        "schedule": schedule_hash,
        "seed": ingredients.seed,
        "device": ingredients.backbone.device.type,
        "version": 1,
        **settings,
    }
    return Stage("ant-classifier", depends_on, compute)


def ant_stages(config: AntConfig, ingredients: Ingredients) -> Sequence[Stage]:
    """The classifier's stage where guidance uses it, else none."""
    return [classifier_stage(config, ingredients)] if config.prepares else []


@register("ant", AntConfig, stages=ant_stages)
def make_ant(config: AntConfig, ingredients: Ingredients) -> Part:
    """ANT as a noise selector; its classifier is read from the cache."""
    backbone = ingredients.backbone
    classifier: NoiseAwareClassifier | None = None
    for stage in ant_stages(config, ingredients):
        classifier = NoiseAwareClassifier(backbone.shape[0], backbone.shape[1:])
        classifier.load_state_dict(ingredients.read(stage))
        frozen(classifier.to(backbone.device))
    source_eps = source_noise_estimate(ingredients) if config.inner_network == "source" and config.noise_steps > 0 else None
    return Part(selector=Ant(config, backbone.schedule, classifier, source_eps))


def source_noise_estimate(ingredients: Ingredients) -> PredictEps:
    """The frozen source model's noise estimate; for a class-conditional model that of the null class."""
    backbone, source = ingredients.backbone, ingredients.source_network()

    def predict_eps(x_t: Tensor, t: Tensor) -> Tensor:
        labels = None if backbone.null_label is None else torch.full_like(t, backbone.null_label)
        return backbone.to_eps(backbone.predict(source, x_t, t, labels), x_t, t)

    return predict_eps
