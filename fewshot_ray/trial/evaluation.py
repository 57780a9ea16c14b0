"""Evaluation of a model during a trial: the metrics of its family, and metrics of samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewshot_ray.data.images import ImageSet
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.metrics.extractors import Extractor, load_extractor, outputs
from fewshot_ray.metrics.extractors.inception import under
from fewshot_ray.metrics.perceptual import PerceptualDistance, load_perceptual
from fewshot_ray.metrics.protocols import find_protocol
from fewshot_ray.metrics.suite import METRICS, NETWORKS, Suite, components, least_samples, needed
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.memory import together
from fewshot_ray.trial.candidate import Candidate, HoldoutLosses, OwnMetrics
from fewshot_ray.trial.drawing import sampling_noise


@dataclass(frozen=True)
class Measured:
    """The metrics of one model, and the images they were computed from."""

    metrics: dict[str, float]
    samples: Tensor | None
    """uint8 `[N, C, H, W]`."""
    strip: Tensor | None = None
    """Interpolations through the latent space (`Candidate.strip`), where a grid was asked for and there is such a space."""
    losses: HoldoutLosses | None = None
    """What the metrics of held-out losses are computed from, where they are measured."""


def extractor_name(config: EvaluateSpec, channels: int, size: tuple[int, int]) -> str:
    """The extractor's name, with `auto` resolved by the images' channels and size: digits for 1 x 8 x 8, else inception."""
    if config.extractor != "auto":
        return config.extractor
    return "digits" if (channels, size) == (1, (8, 8)) else "inception"


class Instruments:
    """The networks of the sample metrics (extractors, LPIPS), loaded once for all folds."""

    def __init__(
        self, config: EvaluateSpec, *, channels: int, size: tuple[int, int], device: torch.device, cache: Folder | None = None
    ) -> None:
        kinds = needed(config.metrics)
        self.device = device
        self.cache = cache
        self.extractor: Extractor | None = None
        self.perceptual: PerceptualDistance | None = None
        name = extractor_name(config, channels, size)
        if "features" in kinds:
            self.extractor = _loaded(config, name, device, chosen=True)
        self.networks: dict[str, Extractor] = {
            network: self.extractor if self.extractor is not None and network == name else _loaded(config, network, device, network == name)
            for network in NETWORKS
            if network in kinds
        }
        if "perceptual" in kinds:
            self.perceptual = load_perceptual(device=device, weights=config.lpips_weights, network=config.lpips_network)

    def outputs(self, extractor: Extractor, images: ImageSet) -> dict[str, Tensor]:
        """What the extractor gives of real images, by name, `[N, D]`; with a cache it is computed once for all trials."""
        depends_on = {
            "images": hashlib.sha256(",".join(images.hashes).encode()).hexdigest()[:16],
            "shape": list(images.images.shape),
            "extractor": [extractor.id, extractor.weights_hash, extractor.resize],
            "device": self.device.type,
            "version": 2,
        }
        stage = Stage("features", depends_on, lambda: outputs(extractor, images.images))
        return read(stage, self.cache) if self.cache is not None else stage.compute()


def _loaded(config: EvaluateSpec, name: str, device: torch.device, chosen: bool) -> Extractor:
    """The extractor called `name`; one that is `evaluate.extractor` (`chosen`) reads `extractor_weights` before its own field."""
    field = "extractor_weights" if chosen and (config.extractor_weights is not None or name not in NETWORKS) else f"{name}_weights"
    extractor = load_extractor(name, device=device, weights=getattr(config, field), field=f"evaluate.{field}")
    return under(extractor, find_protocol(config.protocol))


class Evaluator:
    """Evaluates models on one fold's held-out images, always with the same sampling noise.

    The noise depends on `seed` alone, so that differences between trials are paired.
    """

    def __init__(
        self,
        config: EvaluateSpec,
        fold: Fold,
        instruments: Instruments,
        own: OwnMetrics,
        *,
        seed: int,
        device: torch.device,
        group: Group,
        source: Callable[[int], Tensor] | None = None,
    ) -> None:
        """`source` gives the source model's first so many samples from the same noise; without it, none is compared with it."""
        self.source = source
        self._of_source: Tensor | None = None
        """The source's samples, once they are read."""
        self._source_outputs: dict[int, dict[str, Tensor]] = {}
        """What extractors give of these, by the extractor's `id()`."""
        self.config = config
        self.fold = fold
        self.instruments = instruments
        self.own = own
        self.seed = seed
        self.device = device
        self.group = group

    def measure(self, candidate: Candidate, *, samples: int, grid: bool = False, drawn: Tensor | None = None) -> Measured:
        """All metrics of `evaluate.metrics`, from `samples` generated images; with `grid`, at least as many images as the grid has.

        `drawn`: the candidate's images from the same noise, where they are known already; at least as many.
        """
        own = self.own(candidate)
        metrics = dict(own.metrics)
        wanted = max(samples if self.suite is not None else 0, self.config.grid_images if grid else 0)
        if wanted == 0:
            drawn = None
        elif drawn is None:
            drawn = self.draw_samples(candidate, wanted)
        else:
            drawn = drawn[:wanted]
        if drawn is not None and self.suite is not None:
            suite, generated = self.suite, drawn[:samples].cpu()
            source = self._source_samples(candidate, generated)
            metrics |= together(self.group, "while measuring", lambda: suite.compute(generated, source))
        strip = candidate.strip(self.seed) if grid and self.config.grid_images > 0 else None
        return Measured(metrics, drawn, strip, own.losses)

    def _source_samples(self, candidate: Candidate, generated: Tensor) -> Callable[[], Tensor] | None:
        if candidate.is_source:
            return lambda: generated
        return None if self.source is None else lambda: self._known_source(len(generated))

    def _known_source(self, count: int) -> Tensor:
        assert self.source is not None
        if self._of_source is None or len(self._of_source) != count:
            self._of_source, self._source_outputs = self.source(count), {}
        return self._of_source

    @cached_property
    def suite(self) -> Suite | None:
        """The sample metrics for this fold; None where `evaluate.metrics` has none or nothing is held out."""
        names = [name for name in components(self.config.metrics) if METRICS[name].of_samples]
        if not names or len(self.fold.holdout) == 0:
            return None
        return Suite(
            names,
            training=self.fold.train.images,
            reference=self.fold.holdout.images,
            extractor=self.instruments.extractor,
            perceptual=self.instruments.perceptual,
            conventions=find_protocol(self.config.protocol),
            networks=self.instruments.networks,
            outputs_of=self._outputs,
        )

    def _outputs(self, extractor: Extractor, images: Tensor) -> dict[str, Tensor]:
        for part in (self.fold.holdout, self.fold.train):
            if images is part.images:
                return self.instruments.outputs(extractor, part)
        if images is not self._of_source:
            return outputs(extractor, images)
        if id(extractor) not in self._source_outputs:  # the same in all evaluations
            self._source_outputs[id(extractor)] = outputs(extractor, images)
        return self._source_outputs[id(extractor)]

    def draw_samples(self, candidate: Candidate, count: int) -> Tensor:
        """Images uint8 `[count, C, H, W]` from noise that all trials and steps share; the first n are the same for any count."""
        own = self.group.own(torch.arange(count)).tolist()

        def drawn() -> Tensor:
            if not own:  # more workers than images, and networks refuse empty input
                return torch.empty((0, candidate.channels, *candidate.size), dtype=torch.uint8, device=self.device)
            noise = torch.stack([sampling_noise(candidate, self.seed, index) for index in own]).to(self.device)
            return candidate.images(noise, own, self.config)

        return self.group.gather_rows(together(self.group, "while sampling", drawn), count)

    def protocol(self, samples: int) -> dict[str, str | int | float]:
        """Settings that the metrics depend on; they are stored with every value."""
        stamp: dict[str, str | int | float] = {"protocol": self.config.protocol, "seed": self.seed, "n_generated": samples}
        stamp |= {"n_real": len(self.fold.holdout), **self.own.protocol()}
        return stamp | (self.suite.protocol() if self.suite is not None else {})


def check_evaluation(config: EvaluateSpec, folds: list[Fold]) -> None:
    """Raise UserError where a metric needs more held-out images or more samples than there are."""
    fewest, most = min(len(fold.holdout) for fold in folds), max(len(fold.train) for fold in folds)
    for name in config.metrics:
        if fewest < METRICS[name].real_images:
            raise UserError(
                f"evaluate.metrics: {name} needs {METRICS[name].real_images} held-out images, a fold has {fewest}; "
                "a larger target.holdout, fewer folds or holdout_loss would be right"
            )
        if METRICS[name].beyond_training and config.samples <= most:
            raise UserError(
                f"evaluate.samples: {config.samples} are too few for {name}; more than the {most} images trained on would be right"
            )
        if config.samples < (least := least_samples(name, most)):
            raise UserError(f"evaluate.samples: {config.samples} are too few for {name}; {least} or more would be right")
