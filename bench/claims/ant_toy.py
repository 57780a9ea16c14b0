"""ANT on two Gaussians: does each part do what it is for? N([1, 1], I) -> N([-1, -1], I), ten shots.

python bench/claims/ant_toy.py [--seeds 40] [--finetune-seeds 10]

1. Guidance: with the exact p(target | x_t), the loss's gradient on ten shots turns towards the one on 10,000 target samples
   (the output bias's gradient). Adversarial noise leaves that angle alone.
2. Adversarial noise: the loss at eps* is above the loss at eps.
3. Early training, with a classifier of the same ten shots: the samples' mean comes closer to the target's than by plain fine-tuning.
   Guidance does not fade as the target is reached: later the mean overshoots, as the figures without a target show, and in a wider
   network, which moves further in a step, sooner (64 and up: within the 100 steps, so that the claim fails there).

Variants share shots, timesteps, noise and the pre-trained network, so that nothing but the method differs. Exits with 1 where a
figure misses its target.

Two numbers are fixed by their mean and std up to their order: Eq. 7's Norm over a point could only swap its coordinates. The ascent
therefore sees a point with its mirror image, [x, -x], of which `moments` keeps the length.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from bench.machine import write_result
from fewshot_ray.methods.ant import Ant, AntConfig, train_classifier
from fewshot_ray.methods.randomness import Randomness
from fewshot_ray.models.schedule import NoiseSchedule

SOURCE, TARGET = 1.0, -1.0
SHOTS = 10
REFERENCE_SAMPLES = 10_000
REFERENCE_SEED, SOURCE_SEED, SAMPLING_SEED = 1_000_000, 3_000_000, 4_000_000
PLAIN = AntConfig(noise_steps=0, guidance=0)
GUIDANCE = AntConfig(noise_steps=0)
ANT = AntConfig(noise_norm="moments")


class ToyDenoiser(nn.Module):
    """eps_theta(x_t, t) for x_t `[B, 2, 1, 1]`, t `[B]`: an MLP over x_t and sinusoids of t."""

    frequencies: Tensor

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * 2.0 ** torch.arange(-1, 5) / 1000)
        self.trunk = nn.Sequential(nn.Linear(14, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, 2)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise in x_t, `[B, 2, 1, 1]`."""
        phase = t[:, None] * self.frequencies
        hidden = self.trunk(torch.cat([x_t.flatten(1), phase.sin(), phase.cos()], dim=1))
        noise: Tensor = self.last(hidden)
        return noise.view_as(x_t)


class ExactClassifier(nn.Module):
    """The logit `log N(x_t; sqrt(alpha_bar) mu_target, I) - log N(x_t; sqrt(alpha_bar) mu_source, I)`, equal priors."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits `[B]` for x_t `[B, 2, 1, 1]` and t `[B]`."""
        mean_scale = self.schedule.signal_scale(t)
        to_source, to_target = ((x_t - mean_scale * mu).square().sum(dim=(1, 2, 3)) for mu in (SOURCE, TARGET))
        return (to_source - to_target) / 2


class PlaneAnt(Ant):
    """ANT on points of the plane `[B, 2, 1, 1]`; see the module's docstring for the mirror."""

    def adversarial_noise(self, x_0: Tensor, t: Tensor, eps: Tensor, predict_eps: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """eps* of Eq. 7 `[B, 2, 1, 1]`, each as long as the noise it was drawn as.

        The mirrored loss is twice the plane's, and its gradient in either half the plane's own: omega means what it means there.
        """

        def predict_mirrored(x_t: Tensor, t: Tensor) -> Tensor:
            return mirrored(predict_eps((x_t[:, :, :1] - x_t[:, :, 1:]) / 2, t))

        return super().adversarial_noise(mirrored(x_0), t, mirrored(eps), predict_mirrored)[:, :, :1]


def mirrored(points: Tensor) -> Tensor:
    """`[B, 2, 1, 1]` -> [x, -x] `[B, 2, 2, 1]`."""
    return torch.cat([points, -points], dim=2)


def toy_schedule() -> NoiseSchedule:
    """T = 1000, betas from 1e-4 to 0.02."""
    return NoiseSchedule((1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0))


def draw(seed: int, count: int, mu: float) -> Tensor:
    """`[count, 2, 1, 1]` from N([mu, mu], I)."""
    return mu + torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed))


def residuals(network: nn.Module, schedule: NoiseSchedule, x_0: Tensor, t: Tensor, eps: Tensor, shift: Tensor | None = None) -> Tensor:
    """`||eps + shift - eps_theta(x_t, t)||^2` of each sample, `[B]`."""
    target = eps if shift is None else eps + shift
    predicted: Tensor = network(schedule.add_noise(x_0, eps, t), t)
    return (target - predicted).square().sum(dim=(1, 2, 3))


def pretrain(schedule: NoiseSchedule, steps: int, *, batch: int = 512, lr: float = 2e-3) -> ToyDenoiser:
    """The network of the source, the same whenever it is trained for as many steps."""
    randomness = Randomness(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ToyDenoiser()
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        x_0 = SOURCE + randomness.normal(step, "x_0", (batch, 2, 1, 1))
        t = randomness.integers(step, "t", schedule.timesteps, batch)
        loss = residuals(network, schedule, x_0, t, randomness.normal(step, "eps", tuple(x_0.shape))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
    return network


def bias_gradient(network: ToyDenoiser, ant: Ant, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """The gradient of ANT's loss with respect to the output bias, `[2]`."""
    eps_star, shift = ant(x_0, t, eps, network)
    loss = residuals(network, ant.schedule, x_0, t, eps_star, shift).mean()
    (gradient,) = torch.autograd.grad(loss, network.last.bias)
    return gradient


def degrees(a: Tensor, b: Tensor) -> float:
    """The angle between two vectors of the plane."""
    cross, dot = a[0] * b[1] - a[1] * b[0], a @ b
    return abs(math.degrees(math.atan2(float(cross), float(dot))))


def repeated(shots: Tensor, draws: int, schedule: NoiseSchedule, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Every shot `draws` times, each with an evenly spread t, half the noise the other half's negative (its mean is exactly zero)."""
    x_0 = shots.repeat_interleave(draws, dim=0)
    t = torch.linspace(0, schedule.timesteps - 1, draws // 2).round().long().repeat(2 * len(shots))
    half = torch.randn(len(shots), draws // 2, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    return x_0, t, torch.cat([half, -half], dim=1).flatten(0, 1)


def angles(network: ToyDenoiser, schedule: NoiseSchedule, seeds: int, draws: int) -> dict[str, list[float]]:
    """Degrees between each variant's gradient on ten shots and the plain one on REFERENCE_SAMPLES, a seed each."""
    exact = ExactClassifier(schedule)
    variants = {
        "plain": PlaneAnt(PLAIN, schedule, None),
        "guidance": PlaneAnt(GUIDANCE, schedule, exact),
        "both": PlaneAnt(ANT, schedule, exact),
    }
    many = repeated(draw(REFERENCE_SEED, REFERENCE_SAMPLES, TARGET), 20, schedule, REFERENCE_SEED + 1)
    reference = bias_gradient(network, variants["plain"], *many)
    found: dict[str, list[float]] = {name: [] for name in variants}
    for seed in range(seeds):
        few = repeated(draw(seed, SHOTS, TARGET), draws, schedule, seed + 1_000)
        for name, variant in variants.items():
            found[name].append(degrees(bias_gradient(network, variant, *few), reference))
    return found


def loss_rises(network: ToyDenoiser, schedule: NoiseSchedule, seeds: int, draws: int) -> tuple[float, float]:
    """The share of samples whose loss at eps* is above that at eps, and by how much the mean rises (0.05 is 5 %)."""
    ant = PlaneAnt(ANT, schedule, None)
    shots = torch.cat([draw(seed, SHOTS, TARGET) for seed in range(seeds)])
    x_0, t, eps = repeated(shots, draws, schedule, 2_000)
    eps_star = ant.adversarial_noise(x_0, t, eps, network)
    with torch.no_grad():
        before, after = (residuals(network, schedule, x_0, t, noise) for noise in (eps, eps_star))
    return float((after > before).float().mean()), float(after.mean() / before.mean() - 1)


def finetuned(
    pretrained: ToyDenoiser, ant: Ant, shots: Tensor, seed: int, steps: int = 100, batch: int = 40, lr: float = 1e-4
) -> ToyDenoiser:
    """A copy of `pretrained` after `steps` of Adam on ANT's loss, the preset's global batch of 40."""
    network = copy.deepcopy(pretrained)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    randomness = Randomness(seed)
    for step in range(steps):
        x_0 = shots[randomness.integers(step, "rows", len(shots), batch)]
        t = randomness.integers(step, "t", ant.schedule.timesteps, batch)
        eps, shift = ant(x_0, t, randomness.normal(step, "eps", tuple(x_0.shape)), network)
        loss = residuals(network, ant.schedule, x_0, t, eps, shift).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


@torch.no_grad()
def sample(network: ToyDenoiser, schedule: NoiseSchedule, noise: Tensor, steps: int = 50) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12, eta 0), `[B, 2, 1, 1]`; x_0_hat is not clipped, points have no range."""
    times = torch.linspace(schedule.timesteps - 1, 0, steps).round().long()
    x_t = noise
    for t, t_next in pairwise(times):
        x_t = schedule.add_noise(*_estimates(network, schedule, x_t, t), t_next.expand(len(x_t)))
    return _estimates(network, schedule, x_t, times[-1])[0]


def _estimates(network: ToyDenoiser, schedule: NoiseSchedule, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_0_hat and eps_theta at one t for all."""
    eps = network(x_t, t.expand(len(x_t)))
    return (x_t - schedule.noise_scale(t) * eps) / schedule.signal_scale(t), eps


def mean_distances(pretrained: ToyDenoiser, schedule: NoiseSchedule, seed: int, steps: int) -> tuple[float, float]:
    """How far the samples' mean is from the target's after plain fine-tuning and after ANT, with one seed's shots."""
    shots = draw(seed, SHOTS, TARGET)
    classifier = train_classifier(draw(SOURCE_SEED, 1000, SOURCE), shots, schedule, ANT, seed=seed)
    half = draw(SAMPLING_SEED, 250, 0.0)
    noise = torch.cat([half, -half])
    networks = (
        finetuned(pretrained, ant, shots, seed, steps=steps)
        for ant in (PlaneAnt(PLAIN, schedule, None), PlaneAnt(ANT, schedule, classifier))
    )
    plain, ant = (float((sample(network, schedule, noise).mean(0) - TARGET).norm()) for network in networks)
    return plain, ant


@dataclass(frozen=True)
class Figure:
    """What was measured, beside what is asked of it."""

    name: str
    value: float
    least: float | None = None
    most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value is within its target, where it has one."""
        return (self.least is None or self.value >= self.least) and (self.most is None or self.value <= self.most)

    def __str__(self) -> str:
        wanted = "".join(f"{sign} {bound:.4g}" for sign, bound in ((">=", self.least), ("<=", self.most)) if bound is not None)
        return f"{self.name:72} {self.value:8.4f}   {wanted:10}{'' if self.met else 'MISSED'}".rstrip()


def gradient_figures(network: ToyDenoiser, schedule: NoiseSchedule, *, seeds: int, draws: int = 200) -> list[Figure]:
    """Claims 1 and 2."""
    found = angles(network, schedule, seeds, draws)
    plain, guidance, both = (found[name] for name in ("plain", "guidance", "both"))
    smaller = mean(g < p for g, p in zip(guidance, plain, strict=True))
    moved = max(abs(b - g) for b, g in zip(both, guidance, strict=True))
    risen, rise = loss_rises(network, schedule, seeds, draws)
    return [
        Figure("mean angle to the reference, degrees: plain", mean(plain)),
        Figure("mean angle: guidance", mean(guidance), most=0.65 * mean(plain)),
        Figure("mean angle: guidance and adversarial noise", mean(both)),
        Figure("share of seeds whose angle guidance makes smaller", smaller, least=0.9),
        Figure("largest change of a seed's angle by the noise, degrees", moved, most=0.5),
        Figure("share of samples whose loss at eps* is above that at eps", risen, least=0.9),
        Figure("rise of the mean loss, relative", rise),
    ]


def training_figures(network: ToyDenoiser, schedule: NoiseSchedule, *, seeds: int, steps: int, least: float | None) -> list[Figure]:
    """Claim 3 after `steps`; `least` is the share of seeds in which ANT has to be closer."""
    pairs = [mean_distances(network, schedule, seed, steps) for seed in range(seeds)]
    return [
        Figure(f"distance of the means after {steps} steps: plain", mean(plain for plain, _ in pairs)),
        Figure(f"distance of the means after {steps} steps: ANT", mean(ant for _, ant in pairs)),
        Figure(f"share of seeds in which ANT's is smaller after {steps} steps", mean(ant < plain for plain, ant in pairs), least=least),
    ]


def main() -> int:
    """Measure, print and write results/ant_toy.json; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40, help="of the gradients' shots")
    parser.add_argument("--finetune-seeds", type=int, default=10, help="of the fine-tuning's shots")
    parser.add_argument("--pretrain-steps", type=int, default=3000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    schedule = toy_schedule()
    network = pretrain(schedule, given.pretrain_steps)
    figures = gradient_figures(network, schedule, seeds=given.seeds)
    for steps, least in ((100, 0.9), (300, None)):
        figures += training_figures(network, schedule, seeds=given.finetune_seeds, steps=steps, least=least)
    print(*figures, sep="\n")
    command = " ".join(["python bench/claims/ant_toy.py", *sys.argv[1:]])
    print(write_result("ant_toy", command, {"figures": [asdict(figure) for figure in figures]}))
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
