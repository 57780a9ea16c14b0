"""Measures images, or a pipeline's samples, without a sweep: against images never trained on, and against those trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fewshot_ray.data.images import ImageSet, read_images, read_pictures
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors import Kept
from fewshot_ray.metrics.intervals import Interval, of_mean
from fewshot_ray.metrics.limits import Counts, is_meaningful, remarks
from fewshot_ray.metrics.protocols import find_protocol, unmet
from fewshot_ray.metrics.sample_intervals import sample_intervals
from fewshot_ray.metrics.stamp import Against, Setting, against, stamp
from fewshot_ray.metrics.suite import METRICS, Suite, check_metrics
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.spec.sections.evaluate import LOSS_OF
from fewshot_ray.training.group import Group
from fewshot_ray.trial.candidate import Candidate, OwnMeasured, OwnMetrics
from fewshot_ray.trial.denoising import DiffusionCandidate, HoldoutLoss
from fewshot_ray.trial.drawing import draw
from fewshot_ray.trial.evaluation import Instruments
from fewshot_ray.trial.gan_candidate import GanCandidate
from fewshot_ray.trial.latent_paths import LatentPaths
from fewshot_ray.trial.worst_copies import Copies, worst_copies

GRID = "grid.png"
"""The name of the grid that `fewshot-ray sample` writes beside its images, which is none of them."""
Said = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What is to be measured; places are of images, as `data.places` reads them."""

    place: str
    """Of the generated images; of the pipeline where there is a candidate."""
    config: EvaluateSpec
    """`metrics` isn't read."""
    seed: int = 0
    metrics: tuple[str, ...] | None = None
    """None for those that mean something with the given images."""
    target: str | None = None
    """The images trained on."""
    holdout: str | None = None
    """Real images never trained on."""
    number: int | None = None
    """Images to draw, None for the protocol's number or `evaluate.final_samples`; or the first so many of a place, None for all."""
    size: int | None = None
    """Side to which generated images are scaled and cropped; None where they have one size."""
    copies: int = 0
    """The most copies to find."""


@dataclass(frozen=True)
class Value:
    """A metric's value, its interval, and what it was measured with."""

    value: float
    interval: Interval | None
    against: Against
    stamp: Mapping[str, Setting]
    beside: Mapping[str, float] = field(default_factory=dict)
    """Values that qualify it: occupancy, the paths' mean and end."""

    def to_json(self, metric: str) -> dict[str, Any]:
        """As a JSON object."""
        interval = self.interval.to_json() if self.interval is not None else None
        of = {"value": self.value, "better": METRICS[metric].direction, "interval": interval, "against": self.against}
        return of | ({"beside": dict(self.beside)} if self.beside else {}) | {"stamp": dict(self.stamp)}


@dataclass(frozen=True)
class Judgement:
    """All values of one evaluation."""

    values: Mapping[str, Value]
    remarks: Sequence[str]
    """What makes values meaningless, or not comparable with others; what was left out."""
    copies: Copies | None


@dataclass(frozen=True)
class _Images:
    """The images of an evaluation, all of one size and number of channels."""

    generated: Tensor
    names: Sequence[str]
    train: ImageSet
    holdout: ImageSet
    remarks: tuple[str, ...]


def judge(request: Request, candidate: Candidate | None, device: torch.device, said: Said = lambda text: None) -> Judgement:
    """Measure the candidate's samples, or without one the images at the place. Raises UserError; `said` is told what is being done."""
    _check_asked(request, candidate)
    images = _images(request, candidate, said)
    evaluation = _Evaluation(request, candidate, images, device, said)
    values = evaluation.values()
    undefined = [
        f"{name}: isn't defined for these images, no draw of the loss is in its band" for name in evaluation.metrics if name not in values
    ]
    return Judgement(values, [*evaluation.remarks, *undefined], evaluation.copies)


def _check_asked(request: Request, candidate: Candidate | None) -> None:
    """Raise UserError for copies or a metric that what is given doesn't allow."""
    if request.copies and request.target is None:
        raise UserError("--copies: copies are of images trained on; --target PLACE with them would be right")
    check_metrics(request.metrics or ())
    conventions = find_protocol(request.config.protocol)
    if conventions.shots_in_reference and "fd" in (request.metrics or ()) and None in (request.target, request.holdout):
        option = "--target PLACE with them" if request.target is None else "--holdout PLACE with the set"
        raise UserError(f"evaluate.protocol: {conventions.name} compares fd with {conventions.reference}; {option} would be right")
    for name in request.metrics or ():
        compared, family = against(name), METRICS[name].family
        if "held-out" in compared and request.holdout is None:
            raise UserError(f"evaluate.metrics: {name} compares with images never trained on; --holdout PLACE with such would be right")
        if "training" in compared and request.target is None:
            raise UserError(f"evaluate.metrics: {name} compares with the images trained on; --target PLACE with them would be right")
        if METRICS[name].relative:
            others = f"one of {', '.join(LOSS_OF)}" if METRICS[name].needs == "loss" else "kid"
            raise UserError(f"evaluate.metrics: {name} is relative to a sweep's source model; {others} would be right")
        if family is not None and candidate is None:
            raise UserError(f"evaluate.metrics: {name} is measured on a model, not on its images; a pipeline would be right")
        if family is not None and family != ("gan" if isinstance(candidate, GanCandidate) else "diffusion"):
            raise UserError(f"evaluate.metrics: {name} is measured on {family} models, which {request.place} isn't; another would be right")


def _images(request: Request, candidate: Candidate | None, said: Said) -> _Images:
    said("reading images")
    notes: list[str] = []
    names: Sequence[str] = ()
    if candidate is None:
        found = _given_images(request, notes)
        generated, names = found.images, found.names
    else:
        generated = torch.empty((0, candidate.channels, *candidate.size), dtype=torch.uint8)
    channels, size = generated.shape[1], (generated.shape[2], generated.shape[3])
    sets = [_real_images(place, size, 3 if candidate is None else channels) for place in (request.target, request.holdout)]
    if candidate is None and channels == 1:  # grey, if the real images are
        if all(bool((one.images == one.images[:, :1]).all()) for one in sets):
            sets = [replace(one, images=one.images[:, :1].contiguous()) for one in sets]
        else:
            generated = generated.expand(-1, 3, -1, -1).contiguous()
    train, holdout = sets[0].distinct(), sets[1].distinct()
    rest = holdout.without(train)
    if len(rest) < len(holdout):
        notes.append(f"--holdout: {len(holdout) - len(rest)} of {len(holdout)} images are also in --target and are left out")
    if request.holdout is not None and len(rest) == 0:
        raise UserError(f"--holdout: all of its {len(holdout)} images are in --target too; images never trained on would be right")
    if _draws(request, candidate):
        assert candidate is not None
        count = request.number or find_protocol(request.config.protocol).samples or request.config.final_samples
        generated = draw(candidate, count, request.config, request.seed, said)
        names = [f"sample {number}" for number in range(count)]
    if candidate is None or _draws(request, candidate):
        _check_generated(request, generated)
    return _Images(generated, names, train, rest, tuple(notes))


def _draws(request: Request, candidate: Candidate | None) -> bool:
    """Whether samples of the candidate are needed."""
    metrics = request.metrics
    return candidate is not None and (metrics is None or request.copies > 0 or any(METRICS[name].of_samples for name in metrics))


def _given_images(request: Request, notes: list[str]) -> ImageSet:
    """The generated images at the request's place."""
    if request.size is not None:
        found = read_images(request.place, size=request.size, channels=3)
        grey = bool((found.images == found.images[:, :1]).all())
        found = replace(found, images=found.images[:, :1].contiguous()) if grey else found
    else:
        found = read_pictures(request.place, left_out=lambda name: passed_over(name, notes))
    if request.number is None:
        return found
    if request.number > len(found):
        raise UserError(f"--number {request.number}: {request.place} holds {len(found)} images; no more than that would be right")
    return found.select(range(request.number))


def passed_over(name: str, notes: list[str]) -> bool:
    """Whether a picture is the grid of `fewshot-ray sample`; adds a line to `notes` if so."""
    if name == GRID:
        notes.append(f"{name} is passed over: `fewshot-ray sample` writes its grid under that name")
    return name == GRID


def _real_images(place: str | None, size: tuple[int, int], channels: int) -> ImageSet:
    if place is None:
        return ImageSet(torch.empty((0, channels, *size), dtype=torch.uint8), (), ())
    return read_images(place, size=size, channels=channels)


def _check_generated(request: Request, generated: Tensor) -> None:
    """Raise UserError where there is a single image, or nothing but repetitions of one."""
    if len(generated) < 2:
        raise UserError(f"{request.place}: one generated image; two or more would be right, and hundreds for values that mean something")
    if bool((generated == generated[:1]).all()):
        raise UserError(
            f"{request.place}: all {len(generated)} generated images are the same; no metric of samples means anything, "
            "different images would be right"
        )


class _Evaluation:
    """The metrics of a request's images."""

    def __init__(self, request: Request, candidate: Candidate | None, images: _Images, device: torch.device, said: Said) -> None:
        self.request = request
        self.candidate = candidate
        self.images = images
        self.device = device
        self.said = said
        self.fold = Fold("evaluation", train=images.train, holdout=images.holdout)
        self.conventions = find_protocol(request.config.protocol)

    @cached_property
    def instruments(self) -> Instruments:
        """The networks, of which the extractor keeps its features."""
        metrics = list(self.request.metrics or ["pairwise_distance"])
        metrics += ["memorisation"] if self.request.copies else []
        channels, height, width = self.images.generated.shape[1:]
        config = self.request.config.model_copy(update={"metrics": metrics})
        instruments = Instruments(config, channels=channels, size=(height, width), device=self.device)
        kept = {id(one): Kept(one, self.said) for one in (instruments.extractor, *instruments.networks.values()) if one is not None}
        instruments.networks = {name: kept[id(one)] for name, one in instruments.networks.items()}
        if instruments.extractor is not None:
            instruments.extractor = kept[id(instruments.extractor)]
        return instruments

    @cached_property
    def counts(self) -> Counts:
        """Numbers of images, and of features where there are generated images."""
        dimensions = {}
        if len(self.images.generated):
            extractor = self.instruments.extractor
            networks = self.instruments.networks | ({"features": extractor} if extractor is not None else {})
            dimensions = {need: one.features(self.images.generated).shape[1] for need, one in networks.items()}
        return Counts(len(self.images.generated), len(self.fold.holdout), len(self.fold.train), dimensions)

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Those asked for, else those that mean something with the given images."""
        if self.request.metrics is not None:
            return self.request.metrics
        names = ["pairwise_distance"]
        if isinstance(self.candidate, DiffusionCandidate) and not self.candidate.class_names:
            names[:0] = ["holdout_loss", *LOSS_OF]
        names[-1:-1] = ["fd", "kid", "precision", "recall", "density", "coverage"]
        names += ["intra_distance", "memorisation"]
        return tuple(name for name in names if self._is_given(name) and is_meaningful(name, self.counts))

    def _is_given(self, metric: str) -> bool:
        """Whether the images that the metric compares with are there, and enough of them."""
        compared, counts = against(metric), self.counts
        real = counts.real >= METRICS[metric].real_images
        return real and ("held-out" not in compared or counts.real > 0) and ("training" not in compared or counts.train > 0)

    def values(self) -> dict[str, Value]:
        """All metrics' values, in the order of `metrics`."""
        own = self._own()
        of_samples, intervals = self._of_samples()
        measured = {**own.metrics, **of_samples}
        if own.losses is not None:
            interval = of_mean(torch.tensor(own.losses.by_image()), "held-out images")
            intervals |= {"holdout_loss": interval} if interval is not None else {}
        settings = self.settings
        return {
            name: Value(measured[name], intervals.get(name), against(name), stamp(name, settings), _beside(name, measured))
            for name in self.metrics
            if name in measured  # no noising may be in a band
        }

    def _of_samples(self) -> tuple[dict[str, float], dict[str, Interval]]:
        if not any(METRICS[name].of_samples for name in self.metrics):
            return {}, {}
        self.said("metrics")
        values = self.suite.compute(self.images.generated)
        self.said("intervals")
        return values, sample_intervals(values, self.suite, self.images.generated)

    @cached_property
    def suite(self) -> Suite:
        """The metrics of samples."""
        return Suite(
            [name for name in self.metrics if METRICS[name].of_samples],
            training=self.fold.train.images,
            reference=self.fold.holdout.images,
            extractor=self.instruments.extractor,
            perceptual=self.instruments.perceptual,
            networks=self.instruments.networks,
            conventions=self.conventions,
        )

    def _own(self) -> OwnMeasured:
        if self.own is None or self.candidate is None:
            return OwnMeasured({})
        self.said("metrics of the model")
        return self.own(self.candidate)

    @cached_property
    def own(self) -> OwnMetrics | None:
        """The metrics of the model's family."""
        config = self.request.config
        config = config.model_copy(update={"metrics": list(self.metrics), "paths": config.final_paths})
        if isinstance(self.candidate, GanCandidate):
            return LatentPaths(config, self.instruments, seed=self.request.seed, device=self.device)
        if not isinstance(self.candidate, DiffusionCandidate):
            return None
        losses = [name for name in self.metrics if METRICS[name].needs == "loss"]
        if losses and self.candidate.class_names:
            raise UserError(
                f"evaluate.metrics: {losses[0]} of a model with classes needs those of the images, which only a sweep's file gives; "
                "metrics of samples would be right"
            )
        return HoldoutLoss(config, self.fold, seed=self.request.seed, device=self.device, group=Group())

    @cached_property
    def settings(self) -> dict[str, Setting]:
        """All that the values depend on: what their stamps are taken from."""
        found: dict[str, Setting] = {"protocol": self.conventions.name, "n_generated": len(self.images.generated)}
        if self.candidate is not None and self.own is not None:
            found |= {"seed": self.request.seed, **self.own.protocol()}
        return found | self.suite.protocol()

    @property
    def remarks(self) -> list[str]:
        """On images left out, on metrics that the numbers of images make meaningless, on what the protocol demands."""
        extractor = self.instruments.extractor
        if not len(self.images.generated):
            return list(self.images.remarks)
        lacking = unmet(self.conventions, samples=self.counts.generated, extractor=None if extractor is None else extractor.id)
        return [*self.images.remarks, *remarks(self.metrics, self.counts), *lacking]

    @cached_property
    def copies(self) -> Copies | None:
        """The generated images that come nearest to an image trained on; None where none are asked for."""
        extractor = self.instruments.extractor
        if not self.request.copies or extractor is None:
            return None
        features = [extractor.features(images) for images in (self.images.generated, self.fold.train.images, self.fold.holdout.images)]
        return worst_copies(self.images.generated, self.images.names, self.fold, features, most=self.request.copies)


def _beside(metric: str, measured: Mapping[str, float]) -> dict[str, float]:
    """The further values that come with a metric."""
    names = {
        "intra_distance": ("occupancy",),
        "intra_lpips": ("occupancy_lpips",),
        "memorisation": ("memorisation_ratio",),
        "inception_score": ("inception_score_std",),
        "path_uniformity": ("path_mean", "path_end"),
        "ppl_uniformity": ("ppl_mean", "ppl_end"),
    }
    return {name: measured[name] for name in names.get(metric, ()) if name in measured}
